//! Words in an order that nothing explains, said again and again: from the second time on, looking back is the only way
//! to know the next one. A small network that has read stories alone does not learn to look back; one that has read these
//! learns it first, and then uses it on facts.

use super::grammar::Scene;

/// Lists that words are drawn from.
const LISTS: [&str; 8] = ["thing", "colour", "room", "town", "food", "job", "plural", "spot"];

/// A document: a few words, three or four times over.
pub fn document(scene: &mut Scene) -> String {
    let grammar = super::grammar();
    let n = scene.rng.within(5, 14);
    let mut words: Vec<String> = Vec::new();
    while words.len() < n {
        let list = *scene.rng.pick(&LISTS);
        let word = match scene.rng.below(8) {
            0 => scene.rng.within(2, 999).to_string(),
            1 => scene.person(),
            _ => (*scene.rng.pick(grammar.list(list))).to_owned(),
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let joint = *scene.rng.pick(&[" ", " ", ", ", "\n", " - "]);
    let between = *scene.rng.pick(&["\n", ".\n", " / ", " "]);
    let line = words.join(joint);
    vec![line; scene.rng.within(3, 4)].join(between)
}
