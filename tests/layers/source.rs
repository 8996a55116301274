//! Rust source as the rules see it: without comments, texts and tests, and with every `use` tree spelled out.

/// A file of the project.
pub struct Source {
    /// From the top of the project, with `/`.
    pub path: String,
    /// As it is.
    pub text: String,
    /// Without comments, text literals, and the unit tests at its bottom.
    pub code: String,
    /// Every path in the code, `use` trees taken apart: `crate::format::gguf::Gguf`.
    pub paths: Vec<String>,
}

impl Source {
    /// Reads a source.
    pub fn new(path: &str, text: &str) -> Self {
        let bare = bare(text);
        let code = match bare.find("#[cfg(test)]\nmod ") {
            // `mod tests;` and `mod tests {`; a private helper module of the tests stands at their side.
            Some(at) => bare[..at].to_owned(),
            None => bare,
        };
        let paths = paths(&tokens(&code));
        Self { path: path.to_owned(), text: text.to_owned(), code, paths }
    }

    /// Whether the file is this one, or lies in the folder of that name: `src/tune` is `src/tune.rs` and `src/tune/*`.
    pub fn is_in(&self, module: &str) -> bool {
        self.path == format!("{module}.rs") || self.path.starts_with(&format!("{module}/"))
    }

    /// The first path that begins with `head` and goes on with none of `allowed`.
    pub fn beyond(&self, head: &str, allowed: &[&str]) -> Option<&str> {
        let rest = |p: &str| -> Option<String> { p.strip_prefix(head)?.strip_prefix("::").map(str::to_owned) };
        let strange = |p: &&String| match rest(p) {
            Some(rest) => !allowed.iter().any(|a| rest == *a || rest.starts_with(&format!("{a}::"))),
            None => *p == head,
        };
        self.paths.iter().find(strange).map(String::as_str)
    }

    /// The first path that is `head` or goes on from it.
    pub fn mentions(&self, head: &str) -> Option<&str> {
        self.paths.iter().find(|p| *p == head || p.starts_with(&format!("{head}::"))).map(String::as_str)
    }

    /// Whether a word stands in the code by itself.
    pub fn has_word(&self, word: &str) -> bool {
        tokens(&self.code).iter().any(|t| t == word)
    }
}

/// Comments and the insides of text literals gone, line breaks kept.
fn bare(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let (mut out, mut i) = (String::new(), 0);
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    while i < bytes.len() {
        match (bytes[i], at(i + 1)) {
            ('/', '/') => {
                while i < bytes.len() && bytes[i] != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                i += 2;
                while i < bytes.len() && !(bytes[i] == '*' && at(i + 1) == '/') {
                    i += 1;
                }
                i += 2;
            }
            ('r', '"' | '#') if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') => {
                let hashes = (i + 1..).take_while(|j| at(*j) == '#').count();
                if at(i + 1 + hashes) != '"' {
                    out.push('r');
                    i += 1;
                    continue;
                }
                let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                let end: Vec<char> = end.chars().collect();
                i += 2 + hashes;
                while i < bytes.len() && !bytes[i..].starts_with(&end) {
                    i += 1;
                }
                i += end.len();
                out.push_str("\"\"");
            }
            ('"', _) => {
                i += 1;
                while i < bytes.len() && bytes[i] != '"' {
                    i += if bytes[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
                out.push_str("\"\"");
            }
            ('\'', '\\') => {
                i += 3; // the quote, the bar, and what it escapes, which may be a quote
                while i < bytes.len() && bytes[i] != '\'' {
                    i += 1;
                }
                i += 1;
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (c, _) => {
                out.push(c);
                i += 1;
            }
        }
    }
    out
}

/// Words, `::`, and every other mark by itself.
fn tokens(code: &str) -> Vec<String> {
    let chars: Vec<char> = code.chars().collect();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        if chars[i].is_alphanumeric() || chars[i] == '_' {
            let start = i;
            while i < chars.len() && (chars[i].is_alphanumeric() || chars[i] == '_') {
                i += 1;
            }
            out.push(chars[start..i].iter().collect());
        } else if chars[i] == ':' && chars.get(i + 1) == Some(&':') {
            out.push("::".to_owned());
            i += 2;
        } else {
            if !chars[i].is_whitespace() {
                out.push(chars[i].to_string());
            }
            i += 1;
        }
    }
    out
}

/// Every path; `use a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths(tokens: &[String]) -> Vec<String> {
    let (mut out, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        if tokens[i] == "use" {
            i = tree(tokens, i + 1, "", &mut out);
        } else if is_name(&tokens[i]) {
            let mut path = tokens[i].clone();
            while i + 2 < tokens.len() && tokens[i + 1] == "::" && is_name(&tokens[i + 2]) {
                path = format!("{path}::{}", tokens[i + 2]);
                i += 2;
            }
            i += 1;
            if path.contains("::") {
                out.push(path);
            }
        } else {
            i += 1;
        }
    }
    out
}

/// One branch of a `use` tree, from token `i`; returns where it ends.
fn tree(tokens: &[String], mut i: usize, before: &str, out: &mut Vec<String>) -> usize {
    let mut path = before.to_owned();
    while let Some(token) = tokens.get(i) {
        match token.as_str() {
            "{" => {
                i += 1;
                while tokens.get(i).is_some_and(|t| t != "}") {
                    i = tree(tokens, i, &path, out);
                    i += usize::from(tokens.get(i).is_some_and(|t| t == ","));
                }
                return i + 1;
            }
            "," | "}" | ";" => break,
            "as" => i += 1, // and the name behind it
            "::" => {}
            name => path = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") },
        }
        i += 1;
    }
    out.push(path);
    i
}

fn is_name(token: &str) -> bool {
    token.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
}

#[test]
fn comments_texts_and_tests_are_no_code() {
    let text = "use a; // use b\nlet x = \"use c \\\" unsafe\"; let y = r#\"use \"d\"\"#; let z = '\"'; 'l: loop {}\n/* use e */\nfn f<'a>() {}\n#[cfg(test)]\nmod tests { use f; }\n";
    let source = Source::new("src/x.rs", text);
    assert_eq!(source.paths, ["a"]);
    assert!(source.has_word("loop") && source.has_word("f") && !source.has_word("unsafe") && !source.has_word("tests"));
}

#[test]
fn use_trees_are_taken_apart_and_paths_in_code_are_seen() {
    let source = Source::new("x.rs", "pub use crate::{a::{self, b as c, d::*}, e}; fn f() { g::h::i(1); j::<K>() }");
    assert_eq!(source.paths, ["crate::a::self", "crate::a::b", "crate::a::d::*", "crate::e", "g::h::i"]);
    assert_eq!(source.mentions("crate::a::d"), Some("crate::a::d::*"));
    assert_eq!(source.beyond("crate", &["a"]), Some("crate::e"));
    assert_eq!(source.beyond("crate", &["a", "e"]), None);
}
