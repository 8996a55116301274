//! What a hub's "no" means for the user, and the way out: a status, and the code that the hub puts beside it.

use super::Address;

/// What is asked for, for messages.
pub struct What<'a> {
    /// The repository.
    pub address: &'a Address,
    /// A file of it, if it is not the repository itself.
    pub file: Option<&'a str>,
}

impl std::fmt::Display for What<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.file {
            Some(file) => write!(f, "{}: {file}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// A "no", as it came.
pub struct No<'a> {
    /// Who said it.
    pub endpoint: &'a str,
    /// Whether a token was sent.
    pub with_token: bool,
    /// HTTP status, 4xx.
    pub status: u16,
    /// `X-Error-Code`, if any.
    pub code: &'a str,
    /// `X-Error-Message`, if any.
    pub message: &'a str,
}

impl No<'_> {
    /// In words, with what to do.
    pub fn meaning(&self, what: &What) -> String {
        let (repo, revision, endpoint) = (&what.address.repo, &what.address.revision, self.endpoint);
        match (self.status, self.code) {
            (401 | 403, "GatedRepo") => {
                let then = match self.with_token {
                    true => "pull again with the same account's token",
                    false => "set HF_TOKEN to a token of yours",
                };
                format!(
                    "its owner asks for consent first: accept the terms at {endpoint}/{repo} in a browser, then {then}"
                )
            }
            (401, _) if self.with_token => "the hub does not accept the token: look at HF_TOKEN, or log in anew".into(),
            (401, _) => {
                "no such repository, or it is private: check the name, or set HF_TOKEN to a token that may read it"
                    .into()
            }
            (403, _) if self.with_token => "the token may not read it: give it that right in the hub's settings".into(),
            (403, _) => "the hub forbids it without a token: set HF_TOKEN to one that may read it".into(),
            (404, "RevisionNotFound") => format!("the repository has no branch, tag or commit `{revision}`"),
            (404, "EntryNotFound") => "the repository lists this file, but the hub does not have it".into(),
            (404, "RepoNotFound") => self.no_repo(),
            (404, _) if what.file.is_some() => "the hub does not have this file".into(),
            (404, _) => format!("{}, or it has no revision `{revision}`", self.no_repo()),
            _ if self.message.is_empty() => "the hub refuses".into(),
            _ => format!("the hub says: {}", plain(self.message)),
        }
    }

    fn no_repo(&self) -> String {
        let or = match self.with_token {
            true => "or the token may not see it",
            false => "or it is private and needs HF_TOKEN",
        };
        format!("no such repository at {}, {or}", self.endpoint)
    }
}

/// One short line of what a server says.
fn plain(said: &str) -> String {
    said.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_without_codes_is_understood_by_its_status_and_its_words() {
        let address: Address = "org/name@v9".parse().unwrap();
        let said = |status, with_token, file, message| {
            let no = No { endpoint: "http://hub", with_token, status, code: "", message };
            no.meaning(&What { address: &address, file })
        };
        assert_eq!(
            said(404, false, None, ""),
            "no such repository at http://hub, or it is private and needs HF_TOKEN, or it has no revision `v9`"
        );
        assert_eq!(said(404, true, Some("a"), ""), "the hub does not have this file");
        assert!(said(403, true, None, "").contains("may not read it"));
        assert!(said(403, false, None, "").contains("set HF_TOKEN"));
        assert_eq!(said(400, false, None, "bad\u{1b}[2J thing"), "the hub says: bad[2J thing");
    }
}
