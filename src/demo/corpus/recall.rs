//! Facts told, then asked for: the documents that teach a small model to look back and copy.

use super::grammar::{Grammar, Scene, capitalised};

/// One kind of fact: where its subjects and values come from. Its lines are `{name}.tell`, `.ask`, `.reply`, `.echo`.
pub struct Relation {
    /// The prefix of its lists of lines.
    pub name: &'static str,
    /// What `{s}` is drawn from.
    pub subjects: &'static str,
    /// What `{v}` is drawn from: a list, `person`, `coined`, `number` (100 to 999) or `amount` (2 to 99).
    pub values: &'static str,
    /// What `{o}` is drawn from, once for a document; empty if there is none.
    pub object: &'static str,
}

const fn relation(name: &'static str, subjects: &'static str, values: &'static str, object: &'static str) -> Relation {
    Relation { name, subjects, values, object }
}

/// Every kind of fact.
pub const RELATIONS: &[Relation] = &[
    relation("room", "thing", "room", ""),
    relation("owner", "thing", "person", ""),
    relation("hue", "thing", "colour", ""),
    relation("stuff", "thing", "material", ""),
    relation("price", "thing", "amount", ""),
    relation("job", "person", "job", ""),
    relation("home", "person", "town", ""),
    relation("home", "person", "coined", ""),
    relation("trip", "person", "spot", ""),
    relation("meal", "person", "food", ""),
    relation("pet", "person", "coined", ""),
    relation("wear", "person", "colour", "garment"),
    relation("count", "person", "amount", "plural"),
    relation("visit", "person", "day", ""),
    relation("gift", "person", "thing", ""),
    relation("code", "room", "number", ""),
    relation("start", "event", "hour", ""),
    relation("held", "event", "day", ""),
];

/// One fact of a document.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Index into [`RELATIONS`].
    pub relation: usize,
    /// Whom or what it is about.
    pub subject: String,
    /// What is asked for.
    pub value: String,
    /// The noun beside a colour or a number, where the relation has one; else empty.
    pub object: String,
}

/// `n` different values of a relation's subjects or values; people come from `people`.
pub fn draw(scene: &mut Scene, grammar: &Grammar, list: &str, people: &[&'static str], n: usize) -> Vec<String> {
    let numbers = |scene: &mut Scene, low: usize, high: usize| {
        let all: Vec<String> = (low..=high).map(|n| n.to_string()).collect();
        scene.rng.sample(&all, n)
    };
    match list {
        "person" => scene.rng.sample(people, n).into_iter().map(String::from).collect(),
        "coined" => {
            let mut names: Vec<String> = Vec::new();
            while names.len() < n {
                let name = scene.coined();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names
        }
        "number" => numbers(scene, 100, 999),
        "amount" => numbers(scene, 2, 99),
        _ => scene.rng.sample(grammar.list(list), n).into_iter().map(String::from).collect(),
    }
}

/// Facts for one document: one relation over several subjects, or several relations over the same subjects,
/// so that the subject and the kind of question both matter.
pub fn facts(scene: &mut Scene, grammar: &Grammar, people: &[&'static str], most: usize) -> Vec<Fact> {
    let first = scene.rng.below(RELATIONS.len());
    let subjects = RELATIONS[first].subjects;
    let same: Vec<usize> = (0..RELATIONS.len()).filter(|&r| RELATIONS[r].subjects == subjects).collect();
    let mut relations = scene.rng.sample(&same, if most < 3 { 1 } else { 3 });
    relations.retain(|&r| r != first && RELATIONS[r].name != RELATIONS[first].name);
    relations.truncate(scene.rng.weighted(&[45, 40, 15]));
    if relations.len() == 2 && RELATIONS[relations[0]].name == RELATIONS[relations[1]].name {
        relations.pop();
    }
    relations.push(first);
    let n_subjects = (most / relations.len()).clamp(2, 6);
    let n_subjects = scene.rng.within(2, n_subjects);
    let subjects = draw(scene, grammar, subjects, people, n_subjects);
    // A person who is a subject is no value as well.
    let others: Vec<&'static str> = people.iter().copied().filter(|p| !subjects.iter().any(|s| s == p)).collect();
    let mut facts = Vec::new();
    for relation in relations {
        let values = draw(scene, grammar, RELATIONS[relation].values, &others, n_subjects);
        let object = match RELATIONS[relation].object {
            "" => String::new(),
            list => draw(scene, grammar, list, people, 1).remove(0),
        };
        let pairs = subjects.iter().cloned().zip(values);
        facts.extend(pairs.map(|(subject, value)| Fact { relation, subject, value, object: object.clone() }));
    }
    facts.truncate(facts.len().min(most.max(2)));
    scene.rng.shuffle(&mut facts);
    facts
}

/// Sets the scene to one fact.
pub fn face(scene: &mut Scene, fact: &Fact) {
    scene.bind("s", &fact.subject);
    scene.bind("v", &fact.value);
    scene.bind("o", &fact.object);
}

/// Binds `{p}` and `{q}` to two people whom no fact names.
pub fn bystanders(scene: &mut Scene, facts: &[Fact], people: &[&'static str]) {
    let free: Vec<&'static str> =
        people.iter().copied().filter(|p| !facts.iter().any(|f| f.subject == *p || f.value == *p)).collect();
    let pair = scene.rng.sample(&free, 2);
    scene.bind_person("p", pair[0]);
    scene.bind_person("q", pair[1]);
}

/// Everybody's name.
pub fn people(grammar: &Grammar) -> Vec<&'static str> {
    grammar.list("girl").iter().chain(grammar.list("boy")).copied().collect()
}

/// A document: facts, perhaps told again in another order, then questions about all of them; or lists, or pairs.
pub fn document(scene: &mut Scene) -> String {
    if scene.rng.chance(22) {
        return if scene.rng.chance(50) { lists(scene) } else { pairs(scene) };
    }
    let grammar = super::grammar();
    let people = people(grammar);
    let facts = facts(scene, grammar, &people, 5);
    bystanders(scene, &facts, &people);
    let mut told = tell(scene, &facts);
    let mut paragraphs = vec![told.join(" ")];
    // Told again, a sentence can be copied from its subject on: the first half of the lesson.
    if scene.rng.chance(40) {
        scene.rng.shuffle(&mut told);
        paragraphs.push(format!("{} {}", scene.line("retell"), told.join(" ")));
    }
    paragraphs.push(questions(scene, &facts));
    if scene.rng.chance(40) {
        paragraphs.push(questions(scene, &facts));
    }
    paragraphs.join("\n")
}

/// One or two kinds of facts about the same subjects, each kind in one pattern, then every one asked for twice and
/// answered by its value alone: which value belongs to which subject is all that there is to learn.
pub fn drill(scene: &mut Scene) -> String {
    let grammar = super::grammar();
    let people = people(grammar);
    let facts = facts(scene, grammar, &people, 6);
    bystanders(scene, &facts, &people);
    let patterns: Vec<[usize; 2]> =
        RELATIONS.iter().map(|_| [scene.rng.below(1 << 16), scene.rng.below(1 << 16)]).collect();
    let line = |scene: &mut Scene, fact: &Fact, kind: &str, at: usize| {
        face(scene, fact);
        let lines = grammar.list(&format!("{}.{kind}", RELATIONS[fact.relation].name));
        capitalised(&scene.expand(lines[at % lines.len()]))
    };
    let told: Vec<String> = facts.iter().map(|f| line(scene, f, "tell", patterns[f.relation][0])).collect();
    let joint = *scene.rng.pick(&[" ", "\n"]);
    let mut paragraphs = vec![told.join(" ")];
    let mut asked = facts.to_vec();
    for _ in 0..2 {
        scene.rng.shuffle(&mut asked);
        let lines: Vec<String> = asked
            .iter()
            .map(|f| format!("{} {}.", line(scene, f, "ask", patterns[f.relation][1]), capitalised(&f.value)))
            .collect();
        paragraphs.push(lines.join(joint));
    }
    paragraphs.join("\n")
}

/// The facts in prose, a sentence each, all of one kind in one pattern or each in its own.
fn tell(scene: &mut Scene, facts: &[Fact]) -> Vec<String> {
    let patterns: Vec<usize> = RELATIONS.iter().map(|_| scene.rng.below(1 << 16)).collect();
    let alike = scene.rng.chance(50);
    let mut sentences = Vec::new();
    for fact in facts {
        face(scene, fact);
        let lines = super::grammar().list(&format!("{}.tell", RELATIONS[fact.relation].name));
        let at = if alike { patterns[fact.relation] % lines.len() } else { scene.rng.below(lines.len()) };
        sentences.push(capitalised(&scene.expand(lines[at])));
        if scene.rng.chance(6) {
            sentences.push(scene.line("aside"));
        }
    }
    sentences
}

/// Subject and value side by side, then again in another order: copying at its barest.
fn pairs(scene: &mut Scene) -> String {
    let grammar = super::grammar();
    let people = people(grammar);
    let relation = &RELATIONS[scene.rng.below(RELATIONS.len())];
    let n = scene.rng.within(4, 7);
    let subjects = draw(scene, grammar, relation.subjects, &people, n);
    let values = draw(scene, grammar, relation.values, &people, n);
    let joint = *scene.rng.pick(&[": ", " - ", " = ", " "]);
    let between = *scene.rng.pick(&["\n", ", ", "; ", "\n- "]);
    let mut pairs: Vec<String> = subjects.iter().zip(values).map(|(s, v)| format!("{s}{joint}{v}")).collect();
    let (p, q) = (scene.person(), scene.person());
    scene.bind_person("p", &p);
    scene.bind_person("q", &q);
    let mut paragraphs = Vec::new();
    let times = scene.rng.within(2, 4);
    for i in 0..times {
        let title = scene.line(if i == 0 { "note.title" } else { "retell" });
        let first = if between == "\n- " { "\n- " } else { "\n" };
        paragraphs.push(format!("{title}{first}{}", pairs.join(between)));
        scene.rng.shuffle(&mut pairs);
    }
    paragraphs.join("\n")
}

fn questions(scene: &mut Scene, facts: &[Fact]) -> String {
    let mut asked = facts.to_vec();
    scene.rng.shuffle(&mut asked);
    // One way of asking all through, or another one each time.
    let way = if scene.rng.chance(50) { Some(*scene.rng.pick(super::grammar().list("exchange"))) } else { None };
    let joint = if scene.rng.chance(50) { "\n" } else { " " };
    let mut lines = Vec::new();
    for fact in &asked {
        face(scene, fact);
        let name = RELATIONS[fact.relation].name;
        if way.is_none() && scene.rng.chance(30) {
            lines.push(scene.line(&format!("{name}.echo")));
            continue;
        }
        let ask = scene.line(&format!("{name}.ask"));
        let reply = scene.line(&format!("{name}.reply"));
        scene.bind("ask", &capitalised(&ask));
        scene.bind("bare", &capitalised(reply.trim_end_matches('.')));
        scene.bind("reply", &capitalised(&reply));
        lines.push(match way {
            Some(way) => scene.expand(way),
            None => scene.line("exchange"),
        });
    }
    lines.join(joint)
}

/// Lists of things, each said twice: the plainest lesson in copying.
fn lists(scene: &mut Scene) -> String {
    let mut paragraphs = Vec::new();
    let n = scene.rng.within(2, 3);
    for _ in 0..n {
        let (p, q) = (scene.person(), scene.person());
        scene.bind_person("p", &p);
        scene.bind_person("q", &q);
        let n = scene.rng.within(3, 6);
        let grammar = super::grammar();
        let things = scene.rng.sample(grammar.list("thing"), n);
        let colours = scene.rng.sample(grammar.list("colour"), n);
        let mut words: Vec<String> = things.iter().zip(colours).map(|(t, c)| format!("{c} {t}")).collect();
        if scene.rng.chance(40) {
            words = things.iter().map(|t| t.to_string()).collect();
        }
        let last = words.pop().unwrap_or_default();
        scene.bind("list", &format!("{} and a {last}", words.join(", a ")));
        let (open, again) = (scene.line("list.open"), scene.line("list.again"));
        paragraphs.push(format!("{open} {again}"));
    }
    paragraphs.join("\n")
}
