//! Words in an order that nothing explains, said again and again: from the second time on, looking back is the only way
//! to know the next one. A small network that reads nothing else for a few hundred steps learns to look back, and later
//! uses it on facts; one that reads them among stories does not, since there the next word pays sooner.

use super::rng::Rng;

/// Words of a document, unless twice its words are more.
const LENGTH: usize = 96;

/// A document: 4 to 24 different ones of `words`, twice to six times over, beginning and ending anywhere. A word that is
/// one token is copied in one step, so `words` are best the tokenizer's own.
pub fn document(rng: &mut Rng, words: &[String]) -> String {
    let n = rng.within(4, 24);
    let words = rng.sample(words, n);
    let (from, times) = (rng.below(n), (LENGTH / n).clamp(2, 6));
    words.iter().cycle().skip(from).take(n * times).map(|word| format!(" {word}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_says_the_same_words_again_in_the_same_order() {
        let words: Vec<String> = (0..60).map(|i| format!("w{i}")).collect();
        let mut rng = Rng::new(1, "echoes");
        for _ in 0..200 {
            let text = document(&mut rng, &words);
            let said: Vec<&str> = text.split(' ').skip(1).collect();
            let n = said.iter().skip(1).position(|w| *w == said[0]).expect("said twice") + 1;
            assert!((4..=24).contains(&n) && said.len().is_multiple_of(n) && said.len() >= 2 * n, "{text}");
            assert!((n..said.len()).all(|i| said[i] == said[i - n]), "{text}");
        }
    }
}
