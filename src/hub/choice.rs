//! A listing → the files that a model needs, or the question which.

use super::error::size;
use super::listing::{Listing, Remote};
use super::{Address, HubError};

/// Which files of a repository are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// What tuning and running need: safetensors, configuration, tokenizer, template, README and licence.
    Model,
    /// Files whose name matches one of these, and no other; `*` is any text, `?` one character, case does not matter.
    Include(Vec<String>),
    /// Every file.
    All,
}

/// Beside the weights; of the top folder, but for the pooling of sentence-transformers.
const TEXT: [&str; 19] = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.*",
    "modules.json",
    "sentence_bert_config.json",
    "1_pooling/config.json",
    "readme.md",
    "license*",
    "notice*",
];

/// The names that Transformers and PEFT give to weights; others of the same folder are often the same weights again.
const WEIGHTS: [&str; 3] = ["model.safetensors", "model-?????-of-?????.safetensors", "adapter_model.safetensors"];

/// Files that run code when they are loaded.
const PICKLES: [&str; 4] = ["*.bin", "*.pt", "*.pth", "*.ckpt"];

/// The files to bring.
///
/// # Errors
/// [`HubError::Choose`] when nothing matches, when only pickles are there, or when there are several GGUF files: with
/// the names and sizes to choose from.
pub fn choose<'a>(address: &Address, listing: &'a Listing, choice: &Choice) -> Result<Vec<&'a Remote>, HubError> {
    let matching = |patterns: &[&str]| -> Vec<&'a Remote> {
        listing.files.iter().filter(|f| patterns.iter().any(|p| matches(p, &f.name))).collect()
    };
    let top = |f: &&Remote| !f.name.contains('/');
    match choice {
        Choice::All if listing.files.is_empty() => Err(HubError::Choose(format!("{address}: the repository is empty"))),
        Choice::All => Ok(listing.files.iter().collect()),
        Choice::Include(patterns) => {
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            for pattern in &patterns {
                if matching(&[pattern]).is_empty() {
                    let there = list(&listing.files.iter().collect::<Vec<_>>());
                    return Err(HubError::Choose(format!(
                        "{address}: no file matches --include '{pattern}'; there are\n{there}"
                    )));
                }
            }
            Ok(matching(&patterns))
        }
        Choice::Model => {
            let mut weights: Vec<&Remote> = matching(&WEIGHTS).into_iter().filter(top).collect();
            if weights.is_empty() {
                weights = matching(&["*.safetensors"]).into_iter().filter(top).collect();
            }
            if weights.is_empty() {
                weights = one_gguf(address, &matching(&["*.gguf"]), &matching(&PICKLES), listing)?;
            }
            // A `*` goes through folders, here it must not.
            let text =
                matching(&TEXT).into_iter().filter(|f| top(f) || f.name.eq_ignore_ascii_case("1_pooling/config.json"));
            let mut all: Vec<&Remote> = text.chain(weights).collect();
            all.sort_by(|a, b| a.name.cmp(&b.name));
            all.dedup();
            Ok(all)
        }
    }
}

fn one_gguf<'a>(
    address: &Address,
    ggufs: &[&'a Remote],
    pickles: &[&Remote],
    listing: &Listing,
) -> Result<Vec<&'a Remote>, HubError> {
    match (ggufs, pickles) {
        ([one], _) => Ok(vec![one]),
        ([first, ..], _) => {
            let usual = ggufs.iter().find(|f| matches("*q4_k_m.gguf", &f.name));
            let pattern = usual.map_or(first.name.as_str(), |_| "*q4_k_m.gguf");
            Err(HubError::Choose(format!(
                "{address}: {} GGUF files; say which, such as --include '{pattern}'\n{}",
                ggufs.len(),
                list(ggufs)
            )))
        }
        ([], [pickle, ..]) => Err(HubError::Choose(format!(
            "{address}: its weights are pickles ({}), which can run anything when they are loaded; edgeft reads safetensors alone. \
             Look for a revision with model.safetensors (the hub's converter offers one as @refs/pr/N), or for another copy",
            pickle.name
        ))),
        ([], []) => Err(HubError::Choose(format!(
            "{address}: no safetensors and no GGUF in it; --all brings every file, --include some. There are\n{}",
            list(&listing.files.iter().collect::<Vec<_>>())
        ))),
    }
}

/// Names and sizes, a line each; at most 40.
fn list(files: &[&Remote]) -> String {
    let bytes = |f: &Remote| f.bytes.map_or_else(|| "?".to_owned(), size);
    let mut lines: Vec<String> = files.iter().take(40).map(|f| format!("  {:>12}  {}", bytes(f), f.name)).collect();
    if files.len() > lines.len() {
        lines.push(format!("  and {} more", files.len() - lines.len()));
    }
    lines.join("\n")
}

/// Whether a pattern covers a whole name: `*` is any text, `/` too, `?` one character; the case of ASCII does not matter.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.to_ascii_lowercase().chars().collect(), name.to_ascii_lowercase().chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None; // behind the last `*`, and the end of what it stands for
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((after, end)) => {
                    star = Some((after, end + 1));
                    (p, n) = (after, end + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn names(files: &[&str], choice: &Choice) -> Result<Vec<String>, String> {
        let remote =
            |n: &&str| Remote { name: (*n).to_owned(), path: PathBuf::from(n), bytes: Some(1_500_000), hash: None };
        let listing = Listing { commit: "0".repeat(40), files: files.iter().map(remote).collect() };
        let address = "org/name".parse().unwrap();
        let chosen = choose(&address, &listing, choice).map_err(|e| e.to_string())?;
        Ok(chosen.into_iter().map(|f| f.name.clone()).collect())
    }

    #[test]
    fn patterns_cover_whole_names() {
        for (pattern, name, want) in [
            ("*q4_k_m.gguf", "sub/Model-Q4_K_M.gguf", true),
            ("*", "", true),
            ("a*b*c", "a_b_b_c", true),
            ("a*b*c", "a_b_b_c_", false),
            ("model-?.bin", "model-12.bin", false),
            ("", "a", false),
            ("***a", "bca", true),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn a_model_is_its_safetensors_and_the_text_beside_them() {
        let files = [
            ".gitattributes",
            "1_Pooling/config.json",
            "LICENSE",
            "README.md",
            "chat_template.jinja",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/config.json",
            "onnx/model.onnx",
            "original/model.safetensors",
            "pytorch_model.bin",
            "q/x.gguf",
            "tokenizer.json",
            "train_script.py",
        ];
        assert_eq!(
            names(&files, &Choice::Model).unwrap(),
            [
                "1_Pooling/config.json",
                "LICENSE",
                "README.md",
                "chat_template.jinja",
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ]
        );
        assert_eq!(names(&files, &Choice::All).unwrap().len(), files.len());
        assert_eq!(names(&["config.json", "weights.safetensors"], &Choice::Model).unwrap().len(), 2);
    }

    #[test]
    fn several_ggufs_are_a_question_and_one_is_an_answer() {
        let error = names(&["README.md", "a-Q4_K_M.gguf", "a-Q8_0.gguf"], &Choice::Model).unwrap_err();
        assert!(error.contains("--include '*q4_k_m.gguf'") && error.contains("1.5 MB  a-Q8_0.gguf"), "{error}");
        assert_eq!(names(&["README.md", "a.gguf"], &Choice::Model).unwrap(), ["README.md", "a.gguf"]);
        let include = |p: &str| Choice::Include(vec![p.to_owned()]);
        assert_eq!(
            names(&["README.md", "a-Q4_K_M.gguf", "a-Q8_0.gguf"], &include("*q4_k_m*")).unwrap(),
            ["a-Q4_K_M.gguf"]
        );
        assert!(names(&["a-Q8_0.gguf"], &include("*q4_0*")).unwrap_err().contains("a-Q8_0.gguf"));
    }

    #[test]
    fn pickles_alone_are_refused_with_the_reason() {
        let error = names(&["config.json", "pytorch_model.bin"], &Choice::Model).unwrap_err();
        assert!(error.contains("pytorch_model.bin") && error.contains("safetensors alone"), "{error}");
        assert!(names(&["config.json"], &Choice::Model).unwrap_err().contains("no safetensors and no GGUF"));
    }
}
