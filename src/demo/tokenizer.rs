//! The embedded model's tokenizer: byte-level BPE, trained on the corpus itself.

use super::corpus::{corpus, key_words};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer, TokenizerImpl};

/// Tokens in all: the special ones, 256 bytes, and merges.
pub const VOCAB_SIZE: usize = 2048;
/// One more occurrence of each key word for so many bytes of text.
const KEY_WORD_EVERY_BYTES: usize = 15_000;
/// Begins every document; id 0.
pub const BOS: &str = "<|bos|>";
/// Ends every document; id 1.
pub const EOS: &str = "<|eos|>";
/// Fills a batch; id 2.
pub const PAD: &str = "<|pad|>";
/// Begins a turn of a chat; id 3.
pub const IM_START: &str = "<|im_start|>";
/// Ends a turn of a chat; id 4.
pub const IM_END: &str = "<|im_end|>";
/// The special tokens in the order of their ids.
pub const SPECIAL: [&str; 5] = [BOS, EOS, PAD, IM_START, IM_END];

/// The template of the chats in the corpus, as `tokenizer_config.json` carries it.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The embedded model's tokenizer: trained on `bytes` bytes of the corpus of `seed`; 4 MB are enough to settle it.
///
/// # Errors
/// As [`train`].
pub fn nano(seed: u64, bytes: usize) -> Result<Tokenizer, tokenizers::Error> {
    train(corpus(seed, bytes).chain(key_words(bytes / KEY_WORD_EVERY_BYTES)))
}

/// Words of two letters or more that are one token each after a space, in the order of their ids.
pub fn whole_words(tokenizer: &Tokenizer) -> Vec<String> {
    // Byte-level BPE writes a space as Ġ.
    let mut words: Vec<(u32, String)> = tokenizer
        .get_vocab(false)
        .into_iter()
        .filter_map(|(token, id)| Some((id, token.strip_prefix('Ġ')?.to_owned())))
        .filter(|(_, word)| word.len() > 1 && word.bytes().all(|b| b.is_ascii_alphanumeric()))
        .collect();
    words.sort_unstable();
    words.into_iter().map(|(_, word)| word).collect()
}

/// Trains on `documents`; the same documents give the same tokenizer, byte for byte of its JSON.
///
/// # Errors
/// What the `tokenizers` crate reports, which no text should bring about.
pub fn train(documents: impl Iterator<Item = String> + Send) -> Result<Tokenizer, tokenizers::Error> {
    let special: Vec<AddedToken> = SPECIAL.iter().map(|token| AddedToken::from(*token, true)).collect();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    > = TokenizerImpl::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(bytes)));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB_SIZE)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special.clone())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    // The special tokens in the text are no words to learn from.
    let plain = documents.map(|text| SPECIAL.iter().fold(text, |text, token| text.replace(token, " ")));
    tokenizer.train(&mut trainer, plain)?;
    let mut tokenizer: Tokenizer = tokenizer.into();
    tokenizer.add_special_tokens(special)?;
    tokenizer.with_post_processor(Some(
        TemplateProcessing::builder()
            .try_single(format!("{BOS} $A"))
            .map_err(|e| e.to_string())?
            .try_pair(format!("{BOS} $A $B"))
            .map_err(|e| e.to_string())?
            .special_tokens(vec![(BOS, 0)])
            .build()
            .map_err(|e| e.to_string())?,
    ));
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_is_deterministic_and_every_byte_survives() {
        let train = || nano(1, 300_000).expect("trains");
        let tokenizer = train();
        assert_eq!(tokenizer.to_string(false).expect("json"), train().to_string(false).expect("json"));
        assert_eq!(tokenizer.get_vocab_size(true), VOCAB_SIZE);
        for text in ["Mia put the red kite in the attic.", "<|im_start|>user\nHi<|im_end|>\n", "naïve 42 €\t\n  x", ""]
        {
            let ids = tokenizer.encode(text, true).expect("encodes").get_ids().to_vec();
            assert_eq!(ids[0], 0, "begins with {BOS}");
            assert_eq!(tokenizer.decode(&ids[1..], false).expect("decodes"), text);
        }
        for (id, token) in SPECIAL.iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
            assert_eq!(tokenizer.encode(*token, false).expect("encodes").get_ids(), [id as u32]);
        }
    }

    #[test]
    fn words_of_the_corpus_take_few_tokens() {
        let tokenizer = nano(1, 1_000_000).expect("trains");
        let (mut tokens, mut words) = (0, 0);
        for document in corpus(2, 100_000) {
            tokens += tokenizer.encode(document.as_str(), false).expect("encodes").len();
            words += document.split_whitespace().count();
        }
        assert!(tokens * 10 < words * 17, "{tokens} tokens for {words} words");
    }
}
