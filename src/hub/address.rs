//! `ORG/NAME@REV`, as typed → a repository and a revision that are safe to put into an address and into a path.

use super::HubError;
use std::fmt;
use std::str::FromStr;

/// A model repository at a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `ORG/NAME`, or `NAME` alone for the hub's oldest ones.
    pub repo: String,
    /// Branch, tag, commit or `refs/pr/N`; `main` when none was given.
    pub revision: String,
}

impl Address {
    /// The same, as `hf-hub` takes it.
    pub fn repo(&self) -> hf_hub::Repo {
        hf_hub::Repo::with_revision(self.repo.clone(), hf_hub::RepoType::Model, self.revision.clone())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.revision)
    }
}

impl FromStr for Address {
    type Err = HubError;

    fn from_str(typed: &str) -> Result<Self, HubError> {
        let refuse = |reason: String| HubError::Address { typed: typed.to_owned(), reason };
        if let Some((_, rest)) = typed.split_once("://") {
            let mut parts = rest.split('/').skip(1);
            let guess = [parts.next(), parts.next()].into_iter().flatten().collect::<Vec<_>>().join("/");
            return Err(refuse(format!("REPO is the part behind the host; try `edgeft pull {guess}`")));
        }
        let (repo, revision) = typed.split_once('@').unwrap_or((typed, "main"));
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|p| is_name(p)) {
            return Err(refuse("a repository is ORG/NAME, of letters, digits and `-` `_` `.`".to_owned()));
        }
        if !is_revision(revision) {
            return Err(refuse(format!("`{revision}` is no branch, tag or commit")));
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }
}

/// As the hub allows: 1 to 96 of `[A-Za-z0-9._-]`, no `..` or `--`, no dot or dash at an end.
fn is_name(part: &str) -> bool {
    let ends = |c: char| part.starts_with(c) || part.ends_with(c);
    let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=96).contains(&part.len())
        && part.chars().all(known)
        && !["..", "--"].iter().any(|twice| part.contains(twice))
        && !ends('.')
        && !ends('-')
}

/// The part of git's rules (`git help check-ref-format`) that is also safe, unescaped, in a path and in an address.
fn is_revision(revision: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "._-+=/".contains(c);
    (1..=255).contains(&revision.len())
        && revision.chars().all(known)
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
        && !revision.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_and_revision_are_told_apart() {
        for (typed, repo, revision) in [
            ("org/name", "org/name", "main"),
            ("gpt2", "gpt2", "main"),
            ("org/name-1.5_b@v1.0", "org/name-1.5_b", "v1.0"),
            ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ] {
            let address: Address = typed.parse().unwrap();
            assert_eq!((address.repo.as_str(), address.revision.as_str()), (repo, revision));
        }
    }

    #[test]
    fn what_could_leave_the_address_or_the_cache_is_refused() {
        for typed in [
            "",
            "/",
            "org/",
            "org//name",
            "a/b/c",
            "../name",
            "org/..",
            "org/.name",
            "org/na me",
            "org/name?x",
            "org/name#x",
            "org/a--b",
            "org/name@",
            "org/name@../../x",
            "org/name@/x",
            "org/name@x?y",
            "org/name@a b",
            "org/name@a%2e",
            "org/name@.git",
            "org\\name",
            "org/name@a\\b",
            "org/näme",
        ] {
            assert!(typed.parse::<Address>().is_err(), "{typed}");
        }
    }

    #[test]
    fn a_pasted_link_is_answered_with_what_to_type() {
        let error = "https://hub.example/org/name/tree/main".parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("edgeft pull org/name`"), "{error}");
    }
}
