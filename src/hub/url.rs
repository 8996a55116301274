//! Addresses: whose they are, where a redirect leads, and what of them may be shown.

use ureq::http::Uri;

/// Scheme, host and port: what a token is for.
pub type Origin = (String, String, u16);

/// Of an address of http or https.
pub fn origin(uri: &Uri) -> Option<Origin> {
    let (scheme, host) = (uri.scheme_str()?, uri.host()?);
    let usual = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    Some((scheme.to_owned(), host.to_ascii_lowercase(), uri.port_u16().unwrap_or(usual)))
}

/// Where an answer sends on to (RFC 9110, section 10.2.2; the reference may be relative).
///
/// # Errors
/// What is wrong with it: no address, none that is http or https, or one that leaves https.
pub fn next(from: &Uri, location: &str) -> Result<Uri, String> {
    let (scheme, authority) = (from.scheme_str().unwrap_or_default(), from.authority().map_or("", |a| a.as_str()));
    let absolute = location.split(['/', '?', '#']).next().is_some_and(|head| head.ends_with(':'));
    let text = if absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let next: Uri = text.parse().map_err(|_| "sends on to what is no address".to_owned())?;
    match origin(&next) {
        None => Err("sends on to what is neither http nor https".to_owned()),
        Some((to, host, _)) if scheme == "https" && to == "http" => {
            Err(format!("sends on from https to http, at {host}; refused"))
        }
        Some(_) => Ok(next),
    }
}

/// Host and path; a user or a query may hold a secret, which is nobody's business.
pub fn place(uri: &Uri) -> String {
    let host = uri.authority().map_or("?", |a| a.as_str()).rsplit('@').next().unwrap_or_default();
    format!("{}://{host}{}", uri.scheme_str().unwrap_or("?"), uri.path())
}

/// A file's name inside an address: all but letters, digits and `-._~/` as `%XX`.
pub fn escape(name: &str) -> String {
    let one = |b: u8| match b {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    name.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_on(from: &str, location: &str) -> Result<String, String> {
        next(&from.parse().unwrap(), location).map(|uri| uri.to_string())
    }

    #[test]
    fn a_redirect_may_be_relative() {
        let from = "https://hub.example/org/name/resolve/main/a.bin?x=1";
        for (location, want) in [
            ("https://store.example:81/b?sig=2", "https://store.example:81/b?sig=2"),
            ("//store.example/b", "https://store.example/b"),
            ("/b/c", "https://hub.example/b/c"),
            ("b", "https://hub.example/org/name/resolve/main/b"),
            ("b?next=http://x/", "https://hub.example/org/name/resolve/main/b?next=http://x/"),
        ] {
            assert_eq!(sent_on(from, location).as_deref(), Ok(want));
        }
    }

    #[test]
    fn a_redirect_out_of_https_or_http_is_refused() {
        for location in ["http://hub.example/b", "file:///etc/passwd", "ftp://hub.example/b", "https://"] {
            assert!(sent_on("https://hub.example/a", location).is_err(), "{location}");
        }
        assert!(sent_on("http://127.0.0.1:1/a", "https://store.example/b").is_ok());
    }

    #[test]
    fn a_port_is_part_of_what_a_token_is_for() {
        let of = |text: &str| origin(&text.parse().unwrap());
        assert_eq!(of("https://Hub.example/a"), of("https://hub.example:443/b"));
        for other in
            ["https://hub.example:444", "http://hub.example", "https://hub.example.evil", "https://cdn.hub.example"]
        {
            assert_ne!(of("https://hub.example"), of(other), "{other}");
        }
    }

    #[test]
    fn a_place_shows_no_secret() {
        let uri = "https://me:secret@store.example:81/b?signature=secret".parse().unwrap();
        assert_eq!(place(&uri), "https://store.example:81/b");
    }

    #[test]
    fn names_are_escaped_for_an_address() {
        assert_eq!(escape("a b/ü#?%.json"), "a%20b/%C3%BC%23%3F%25.json");
    }
}
