//! Words in an order that nothing explains, said again and again: from the second time on, looking back is the only way
//! to know the next one. A small network that reads these before anything else learns to look back within a few hundred
//! steps, and later uses it on facts; one that reads them among stories does not, since words alone pay sooner there.

use super::grammar::Scene;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Bytes of text that the words are taken from.
const WORDS_FROM_BYTES: usize = 300_000;
/// About so many words a document.
const LENGTH: usize = 72;

/// Every word in small letters of a stretch of the other documents.
static WORDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut words = BTreeSet::new();
    for text in super::mixed(9, WORDS_FROM_BYTES, super::WITHOUT_ECHOES) {
        let small = |w: &&str| w.len() > 1 && w.bytes().all(|b| b.is_ascii_lowercase());
        words.extend(text.split(|c: char| !c.is_ascii_alphanumeric()).filter(small).map(String::from));
    }
    words.into_iter().collect()
});

/// A document: 4 to 24 different words, twice to six times over, beginning and ending anywhere.
pub fn document(scene: &mut Scene) -> String {
    let n = scene.rng.within(4, 24);
    let mut words: Vec<String> = Vec::new();
    while words.len() < n {
        let word = match scene.rng.below(12) {
            0 => scene.rng.within(2, 999).to_string(),
            1 => scene.person(),
            2 => scene.coined(),
            _ => scene.rng.pick(&WORDS).clone(),
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let joint = *scene.rng.pick(&[" ", " ", " ", " ", " ", " ", " ", ", ", "\n", " - "]);
    let (from, times) = (scene.rng.below(n), (LENGTH / n).clamp(2, 6));
    let line: Vec<&str> = words.iter().cycle().skip(from).take(n * times).map(String::as_str).collect();
    line.join(joint)
}
