//! Tokenizers for the tiny models, made with the `tokenizers` crate from the words of the test data.

use super::data::WORDS;
use serde_json::{Value, json};
use std::sync::LazyLock;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{Tokenizer, TokenizerImpl};

/// ChatML, as many small models have it.
pub const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
    message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const SPECIAL: [&str; 4] = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"];

/// `tokenizer.json` and `tokenizer_config.json` of the decoders: byte-level BPE with a chat template.
pub fn byte_level() -> (String, Value) {
    static JSON: LazyLock<String> = LazyLock::new(|| {
        let post = template("<|bos|> $A", "<|bos|> $A $B", vec![("<|bos|>", 0)]);
        byte_level_bpe(&SPECIAL, post).to_string(false).expect("JSON")
    });
    let config = json!({"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "chat_template": TEMPLATE});
    (JSON.clone(), config)
}

/// The same of RoBERTa: byte-level BPE, pairs with two ends between them and token types that are all 0.
pub fn byte_level_pairs() -> (String, Value) {
    const SPECIAL: [&str; 5] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];
    static JSON: LazyLock<String> = LazyLock::new(|| {
        let pair = "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0";
        let post = template("<s>:0 $A:0 </s>:0", pair, vec![("<s>", 0), ("</s>", 2)]);
        byte_level_bpe(&SPECIAL, post).to_string(false).expect("JSON")
    });
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "mask_token": "<mask>"});
    (JSON.clone(), config)
}

/// The same of BERT and DistilBERT: WordPiece over the words of the test data, and over single letters.
pub fn wordpiece() -> (String, Value) {
    static JSON: LazyLock<String> = LazyLock::new(|| word_piece().to_string(false).expect("JSON"));
    let config = json!({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"});
    (JSON.clone(), config)
}

fn template(single: &str, pair: &str, special: Vec<(&str, u32)>) -> PostProcessorWrapper {
    let special: Vec<(String, u32)> = special.into_iter().map(|(t, id)| (t.to_owned(), id)).collect();
    let builder = &mut TemplateProcessing::builder();
    let built =
        builder.try_single(single).expect("single").try_pair(pair).expect("pair").special_tokens(special).build();
    PostProcessorWrapper::Template(built.expect("a template"))
}

fn byte_level_bpe(special: &[&str], post: PostProcessorWrapper) -> Tokenizer {
    let special: Vec<AddedToken> = special.iter().map(|t| AddedToken::from(*t, true)).collect();
    let bytes = ByteLevel::new(false, true, true);
    let mut made: TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper> =
        TokenizerImpl::new(BPE::default());
    made.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(bytes)));
    made.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(340)
        .min_frequency(1)
        .show_progress(false)
        .special_tokens(special.clone())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    made.train(&mut trainer, WORDS.iter().map(|w| format!("the {w} is {w}"))).expect("trains");
    let mut made: Tokenizer = made.into();
    made.add_special_tokens(special).expect("special tokens");
    made.with_post_processor(Some(post));
    made
}

fn word_piece() -> Tokenizer {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let letters = ('a'..='z').flat_map(|c| [c.to_string(), format!("##{c}")]);
    let marks = [".", ",", "!", "?"].map(str::to_owned);
    let mut words: Vec<String> = special.map(str::to_owned).into_iter().chain(letters).chain(marks).collect();
    for word in WORDS.iter().flat_map(|w| w.split(' ')) {
        if !words.iter().any(|w| w == word) {
            words.push(word.to_owned());
        }
    }
    assert!(words.len() <= super::tiny::VOCAB, "{}", words.len());
    let folder = super::Folder::new();
    folder.write("vocab.txt", words.join("\n"));
    let file = folder.at("vocab.txt").to_string_lossy().into_owned();
    let model = WordPiece::from_file(&file).unk_token("[UNK]".into()).build().expect("a WordPiece");
    let mut made = Tokenizer::new(model);
    made.with_normalizer(Some(BertNormalizer::new(true, true, None, true))).expect("a normalizer");
    made.with_pre_tokenizer(Some(BertPreTokenizer));
    made.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
    let special: Vec<AddedToken> = special.iter().map(|t| AddedToken::from(*t, true)).collect();
    made.add_special_tokens(special).expect("special tokens");
    let single = "[CLS]:0 $A:0 [SEP]:0";
    let pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1";
    made.with_post_processor(Some(template(single, pair, vec![("[CLS]", 2), ("[SEP]", 3)])));
    made
}
