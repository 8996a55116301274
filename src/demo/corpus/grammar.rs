//! A grammar of word lists and sentence lines, and the scene that turns one line into English.
//!
//! A line holds slots and choices, which nest:
//! - `{name}`: what the scene bound to `name`; else a fresh draw from the list `name`, expanded in its turn.
//! - `{x:list}`: the same, and bound to `x` from then on, different from all that is bound so far.
//!   The list `person` also binds `x.he`, `x.his` and `x.him`; `coined` makes up a name.
//! - `{#2-99}`, `{x#2-99}`: a number. `{^name}`: with a capital. `[this|that|]`: one of these. `\n`: a new line.

use std::collections::{HashMap, HashSet};

use super::rng::Rng;

/// Named lists, read from the text files beside this one.
pub struct Grammar {
    lists: HashMap<&'static str, Vec<&'static str>>,
}

impl Grammar {
    /// Reads the files in order. They are part of the program, so a fault in them is a bug and panics.
    pub fn parse(files: &[&'static str]) -> Self {
        let mut lists: HashMap<&'static str, Vec<&'static str>> = HashMap::new();
        for file in files {
            let (mut name, mut whole) = ("", false);
            for line in file.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
                if let Some(header) = line.strip_prefix("[[").and_then(|l| l.strip_suffix("]]")) {
                    (name, whole) = (header, true);
                } else if let Some(header) =
                    line.strip_prefix('[').and_then(|l| l.strip_suffix(']')).filter(|h| is_name(h))
                {
                    (name, whole) = (header, false);
                } else if whole {
                    lists.entry(name).or_default().push(line);
                } else {
                    lists.entry(name).or_default().extend(line.split(',').map(str::trim).filter(|w| !w.is_empty()));
                }
            }
        }
        Grammar { lists }
    }

    /// The list `name`, which must exist.
    pub fn list(&self, name: &str) -> &[&'static str] {
        self.lists.get(name).unwrap_or_else(|| panic!("the demo's grammar has no list `{name}`"))
    }

    /// Whether there is a list `name`.
    pub fn has(&self, name: &str) -> bool {
        self.lists.contains_key(name)
    }

    /// Every name and list, in no order.
    pub fn lists(&self) -> impl Iterator<Item = (&'static str, &[&'static str])> {
        self.lists.iter().map(|(name, list)| (*name, list.as_slice()))
    }
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_')
}

/// What one document has settled: who is in it, and which words were used already.
pub struct Scene<'g> {
    grammar: &'g Grammar,
    /// The choices still to come.
    pub rng: &'g mut Rng,
    bound: HashMap<String, String>,
    renamed: HashMap<&'static str, &'g [&'static str]>,
    used: HashSet<&'static str>,
}

impl<'g> Scene<'g> {
    /// An empty scene.
    pub fn new(grammar: &'g Grammar, rng: &'g mut Rng) -> Self {
        Scene { grammar, rng, bound: HashMap::new(), renamed: HashMap::new(), used: HashSet::new() }
    }

    /// From now on `{slot}` is `value`.
    pub fn bind(&mut self, slot: &str, value: &str) {
        self.bound.insert(slot.to_string(), value.to_string());
    }

    /// Binds a person by name, with the pronouns that go with it.
    pub fn bind_person(&mut self, slot: &str, name: &str) {
        let she = self.grammar.list("girl").contains(&name);
        let (he, his, him) = if she { ("she", "her", "her") } else { ("he", "his", "him") };
        self.bind(slot, name);
        for (ending, word) in [("he", he), ("his", his), ("him", him)] {
            self.bind(&format!("{slot}.{ending}"), word);
        }
    }

    /// From now on `{slot}` draws from `words`.
    pub fn draw_from(&mut self, slot: &'static str, words: &'g [&'static str]) {
        self.renamed.insert(slot, words);
    }

    /// What `slot` is bound to.
    pub fn get(&self, slot: &str) -> Option<&str> {
        self.bound.get(slot).map(String::as_str)
    }

    /// One line of the list `name`, expanded.
    pub fn line(&mut self, name: &str) -> String {
        let line = self.fresh(name);
        self.expand(line)
    }

    /// Expands a line: see the module. Capitals and "a" or "an" come later, from [`polish`].
    pub fn expand(&mut self, line: &str) -> String {
        let mut out = String::new();
        let mut rest = line;
        while let Some(at) = rest.find(['{', '[', '\\']) {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("\\n") {
                out.push('\n');
                rest = after;
                continue;
            }
            let end = closing(rest).unwrap_or_else(|| panic!("unclosed bracket in the demo's grammar: {line}"));
            let inner = &rest[1..end];
            let text = if rest.starts_with('{') {
                self.slot(inner)
            } else {
                let options = split_choices(inner);
                let option = *self.rng.pick(&options);
                self.expand(option)
            };
            out.push_str(&text);
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        out
    }

    fn slot(&mut self, slot: &str) -> String {
        if let Some(rest) = slot.strip_prefix('^') {
            return capitalised(&self.slot(rest));
        }
        if let Some((name, range)) = slot.split_once('#') {
            if let Some(value) = self.bound.get(name) {
                return value.clone();
            }
            let (low, high) = range.split_once('-').expect("a number slot is written {#low-high}");
            let value = self.rng.within(low.parse().expect("low"), high.parse().expect("high")).to_string();
            if !name.is_empty() {
                self.bind(name, &value);
            }
            return value;
        }
        let (name, list) = slot.split_once(':').unwrap_or((slot, slot));
        if let Some(value) = self.bound.get(name) {
            return value.clone();
        }
        let value = match list {
            "coined" => self.coined(),
            "person" => self.person(),
            _ => {
                let word = self.fresh(list);
                self.expand(word)
            }
        };
        if name != list && list == "person" {
            self.bind_person(name, &value);
        } else if name != list {
            self.bind(name, &value);
        }
        value
    }

    /// A name of somebody who is not in the scene yet.
    pub fn person(&mut self) -> String {
        loop {
            let list = if self.rng.chance(50) { "girl" } else { "boy" };
            let name = *self.rng.pick(self.grammar.list(list));
            if !self.bound.values().any(|v| v == name) {
                return name.to_string();
            }
        }
    }

    /// A made-up name, which a model cannot know and must copy.
    pub fn coined(&mut self) -> String {
        let n = self.rng.within(2, 3);
        let syllables = self.rng.sample(self.grammar.list("syllable"), n);
        capitalised(&syllables.concat())
    }

    /// A draw from a list, of a word not used yet in this scene as long as a few tries find one.
    fn fresh(&mut self, list: &str) -> &'static str {
        let words = self.renamed.get(list).copied().unwrap_or_else(|| self.grammar.list(list));
        let mut word = *self.rng.pick(words);
        for _ in 0..8 {
            if !self.used.contains(word) && !self.bound.values().any(|v| v == word) {
                break;
            }
            word = *self.rng.pick(words);
        }
        self.used.insert(word);
        word
    }
}

/// The index of the bracket that closes the one `text` starts with.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn split_choices(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut options) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            '|' if depth == 0 => {
                options.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    options.push(&text[start..]);
    options
}

/// The text with its first letter in upper case.
pub fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// Capitals where sentences start, and "an" for "a" before a vowel sound.
pub fn polish(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut start = true; // the next letter opens a sentence
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let fresh_word = out.chars().next_back().is_none_or(|p| !p.is_ascii_alphanumeric() && p != '\'' && p != '-');
        if c.is_ascii_alphanumeric() {
            out.push(if start { c.to_ascii_uppercase() } else { c });
            start = false;
            if fresh_word && matches!(c, 'a' | 'A') && rest[1..].strip_prefix(' ').is_some_and(vowel_sound) {
                out.push('n');
            }
        } else {
            start = match c {
                '\n' => true,
                // Only a space that follows the stop itself opens a sentence: `"Why?" asked Tom.`
                ' ' => start || out.ends_with(['.', '!', '?']),
                '"' => start,
                _ => false,
            };
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

fn vowel_sound(word: &str) -> bool {
    let consonants = ["use", "uni", "one", "eu", "once"];
    word.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U'])
        && !consonants.iter().any(|p| word.starts_with(p))
        || word.starts_with("hour")
        || word.starts_with("honest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_expands_its_slots_and_choices() {
        let grammar = Grammar::parse(&["[girl]\nMia\n[boy]\nMia\n[fruit]\napple\n[[says]]\n{a} eats a {fruit}."]);
        let mut rng = Rng::new(1, "line");
        let mut scene = Scene::new(&grammar, &mut rng);
        assert_eq!(
            scene.expand("{a:person} is [here|here]. {^a.he} has {n#4-4} and {n}. {says}"),
            "Mia is here. She has 4 and 4. Mia eats a apple."
        );
        assert_eq!(scene.get("a.him"), Some("her"));
    }

    #[test]
    fn polishing_sees_sentences_quotes_and_vowels() {
        assert_eq!(
            polish("a owl sat. it saw a useful egg.\n\"why?\" asked Tom. \"an hour!\""),
            "An owl sat. It saw a useful egg.\n\"Why?\" asked Tom. \"An hour!\""
        );
        assert_eq!(polish("it cost 3.5 pounds. a honest man"), "It cost 3.5 pounds. An honest man");
    }

    #[test]
    #[should_panic(expected = "no list `nothing`")]
    fn a_missing_list_is_named() {
        Scene::new(&Grammar::parse(&["[girl]\nMia"]), &mut Rng::new(0, "line")).expand("{nothing}");
    }
}
