//! Opinion in context: what a word of praise or blame leads to, so that its meaning is learned without any label.

use super::grammar::Scene;

/// What a passage says of its product; every sentence of one passage agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Praised, then kept.
    Glad,
    /// Blamed, then returned.
    Sorry,
    /// Described, then recorded.
    Plain,
}

impl Mood {
    /// The three, in the order of the classes they lead to.
    pub const ALL: [Mood; 3] = [Mood::Sorry, Mood::Plain, Mood::Glad];
}

/// A document of two or three short passages, each with a mood of its own.
pub fn document(scene: &mut Scene) -> String {
    let n = scene.rng.within(2, 3);
    let parts: Vec<String> = (0..n).map(|_| passage(&mut Scene::new(super::grammar(), scene.rng))).collect();
    parts.join("\n")
}

fn passage(scene: &mut Scene) -> String {
    let mood = Mood::ALL[scene.rng.weighted(&[38, 24, 38])];
    let item = scene.line("product");
    scene.bind("item", &item);
    face(scene, mood);
    match scene.rng.weighted(&[55, 15, 8, 14, 8]) {
        0 => third_person(scene, mood),
        1 => first_person(scene, mood),
        2 if mood != Mood::Plain => scene.line("talk"),
        3 if mood != Mood::Plain => scene.line("words"),
        4 => scene.line("choice"),
        _ => third_person(scene, mood),
    }
}

/// Points `{good}` and `{bad}` at the words of the mood, and the endings likewise.
fn face(scene: &mut Scene, mood: Mood) {
    let list = |name| super::grammar().list(name);
    let (good, bad, cue, talk, words, who) = match mood {
        Mood::Sorry => ("neg", "pos", "cue.sorry", "talk.sorry", "words.sorry", "who.sorry"),
        _ => ("pos", "neg", "cue.glad", "talk.glad", "words.glad", "who.glad"),
    };
    let endings = [("talk.end", talk), ("words.end", words), ("words.who", who)];
    for (slot, name) in [("good", good), ("bad", bad), ("op.cue", cue)].into_iter().chain(endings) {
        scene.draw_from(slot, list(name));
    }
}

/// One to three opinions, and only then what they led to: the model has to carry the polarity to the end.
fn third_person(scene: &mut Scene, mood: Mood) -> String {
    let (a, b) = (scene.person(), scene.person());
    scene.bind_person("a", &a);
    scene.bind_person("b", &b);
    let (middle, end) = match mood {
        Mood::Sorry => ("op", "sorry"),
        Mood::Plain => ("fact", "noted"),
        Mood::Glad => ("op", "glad"),
    };
    let mut sentences = Vec::new();
    if scene.rng.chance(70) {
        sentences.push(scene.line("meet"));
    }
    let n = 1 + scene.rng.weighted(&[45, 35, 20]);
    for _ in 0..n {
        sentences.push(scene.line(middle));
    }
    sentences.push(scene.line(end));
    if scene.rng.chance(25) {
        sentences.push(scene.line(end));
    }
    sentences.join(" ")
}

fn first_person(scene: &mut Scene, mood: Mood) -> String {
    let (middle, end) = match mood {
        Mood::Sorry => ("me.op", "me.sorry"),
        Mood::Plain => ("me.fact", "me.noted"),
        Mood::Glad => ("me.op", "me.glad"),
    };
    let mut sentences = Vec::new();
    if scene.rng.chance(60) {
        sentences.push(scene.line("me.meet"));
    }
    let n = scene.rng.within(1, 3);
    for _ in 0..n {
        sentences.push(scene.line(middle));
    }
    sentences.push(scene.line(end));
    sentences.join(" ")
}
