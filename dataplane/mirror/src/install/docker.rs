//! What Docker's `daemon.json` is to be, without IO. Docker asks mirrors for Docker Hub's images alone,
//! and reads the file when it starts and when it is reloaded.

use serde_json::{Map, Value};

use super::hosts::Unsound;

const MIRRORS: &str = "registry-mirrors";

/// The text with a mirror at `url` as the first of Docker Hub's. Docker allows no comments and no keys
/// that it does not know, so nothing in the file says who wrote it: whoever has the text from before
/// puts that back.
///
/// # Errors
/// The text is not what Docker would read.
pub fn with_entry(text: &str, url: &str) -> Result<String, Unsound> {
    let mut all = read(text)?;
    let mirrors = all.entry(MIRRORS).or_insert_with(|| Value::Array(vec![]));
    let mirrors = mirrors
        .as_array_mut()
        .ok_or_else(|| Unsound::NoPlace(format!("{MIRRORS} is no list")))?;
    if mirrors.first().is_some_and(|first| is(first, url)) {
        return Ok(text.to_owned());
    }
    mirrors.retain(|mirror| !is(mirror, url));
    mirrors.insert(0, Value::from(url));
    written(all)
}

/// The text without that mirror, whatever else was changed since; `None` where nothing is left.
///
/// # Errors
/// The text is not what Docker would read.
pub fn without_entry(text: &str, url: &str) -> Result<Option<String>, Unsound> {
    let mut all = read(text)?;
    let Some(mirrors) = all.get_mut(MIRRORS).and_then(Value::as_array_mut) else {
        return Ok(Some(text.to_owned()));
    };
    let before = mirrors.len();
    mirrors.retain(|mirror| !is(mirror, url));
    if mirrors.len() == before {
        return Ok(Some(text.to_owned()));
    }
    if mirrors.is_empty() {
        all.remove(MIRRORS);
    }
    if all.is_empty() {
        return Ok(None);
    }
    written(all).map(Some)
}

/// Whether the mirror is in the text.
pub fn has_entry(text: &str, url: &str) -> bool {
    let all = read(text).unwrap_or_default();
    let mirrors = all.get(MIRRORS).and_then(Value::as_array);
    mirrors.is_some_and(|mirrors| mirrors.iter().any(|mirror| is(mirror, url)))
}

fn is(mirror: &Value, url: &str) -> bool {
    let bare = |url: &str| url.trim_end_matches('/').to_owned();
    mirror
        .as_str()
        .is_some_and(|mirror| bare(mirror) == bare(url))
}

fn read(text: &str) -> Result<Map<String, Value>, Unsound> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).map_err(|e| Unsound::Syntax(e.to_string()))
}

fn written(all: Map<String, Value>) -> Result<String, Unsound> {
    let text = serde_json::to_string_pretty(&all).map_err(|e| Unsound::Syntax(e.to_string()))?;
    Ok(format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:4002";

    fn mirrors(text: &str) -> Vec<String> {
        let all: Value = serde_json::from_str(text).unwrap();
        serde_json::from_value(all[MIRRORS].clone()).unwrap()
    }

    #[test]
    fn the_mirror_comes_first_and_goes_alone() {
        assert_eq!(mirrors(&with_entry("", URL).unwrap()), [URL]);
        // As Docker's documents and kubeadm's have it.
        let own = "{\n  \"exec-opts\": [\"native.cgroupdriver=systemd\"],\n  \"log-driver\": \"json-file\",\n  \
                   \"log-opts\": {\"max-size\": \"100m\"},\n  \"registry-mirrors\": [\"https://m.test/\"],\n  \
                   \"storage-driver\": \"overlay2\"\n}\n";
        let made = with_entry(own, URL).unwrap();
        assert_eq!(mirrors(&made), [URL, "https://m.test/"]);
        let value: Value = serde_json::from_str(&made).unwrap();
        assert_eq!(value["log-opts"]["max-size"], "100m");
        assert_eq!(with_entry(&made, URL).unwrap(), made, "twice is once");
        assert!(has_entry(&made, URL) && !has_entry(own, URL));
        let without = without_entry(&made, URL).unwrap().unwrap();
        let (a, b): (Value, Value) = (
            serde_json::from_str(&without).unwrap(),
            serde_json::from_str(own).unwrap(),
        );
        assert_eq!(a, b);
        let alone = with_entry("", URL).unwrap();
        assert_eq!(without_entry(&alone, URL).unwrap(), None);
        assert_eq!(without_entry(own, URL).unwrap().as_deref(), Some(own));
    }

    #[test]
    fn what_docker_would_not_read_is_left_alone() {
        for text in ["{", "[]", "{\"registry-mirrors\": \"x\"}", "// no\n{}"] {
            assert!(with_entry(text, URL).is_err(), "{text}");
        }
    }
}
