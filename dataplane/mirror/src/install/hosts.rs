//! A `hosts.toml` with the mirror's entry, and without it again.
//!
//! The entry is a block of lines between two marks, put before the first table, for containerd tries
//! hosts in the order of the file. The rest is not parsed and written anew but stays as it is.

use toml_edit::{Document, Item, Table};

const BEGIN: &str = "# >>> dragonfly: the mirror on this node; written and removed by dragonfly";
const END: &str = "# <<< dragonfly";
/// Added to the end mark where the last line before the block had no end of line.
const JOINED: &str = " (the line before the block had no end)";

/// Why a file is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// It is not of its format.
    #[error("it cannot be read as what it should be: {0}")]
    Syntax(String),
    /// What it holds is written so that nothing can be added.
    #[error("nothing can be added to it: {0}")]
    NoPlace(String),
    /// A block begins and does not end.
    #[error("the block of dragonfly has no end: remove the rest of it")]
    Torn,
}

/// Certificates for a registry that lie beside the file, as Docker has them; names of files. containerd
/// takes them where there is no `hosts.toml`, and no longer where there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    /// `*.crt`: authorities.
    pub authorities: Vec<String>,
    /// `*.cert`: what is shown to the registry, with where its key is.
    pub own: Vec<[String; 2]>,
}

impl Certificates {
    /// Those among the names of a directory.
    #[must_use]
    pub fn among(mut names: Vec<String>) -> Self {
        names.sort();
        let authorities = names.iter().filter(|name| name.ends_with(".crt"));
        let own = names.iter().filter_map(|name| {
            let key = format!("{}.key", name.strip_suffix(".cert")?);
            // The key may be in the same file.
            let key = if names.contains(&key) {
                key
            } else {
                name.clone()
            };
            Some([name.clone(), key])
        });
        Self {
            authorities: authorities.cloned().collect(),
            own: own.collect(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty() && self.own.is_empty()
    }

    /// As the file says it of the registry itself.
    fn said(&self) -> String {
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        // A string of JSON is one of TOML.
        let quoted = |name: &String| serde_json::Value::from(name.as_str()).to_string();
        let mut said = String::new();
        if !self.authorities.is_empty() {
            let names = self.authorities.iter().map(quoted).collect();
            said.push_str(&format!("ca = {}\n", list(names)));
        }
        if !self.own.is_empty() {
            let pairs = self
                .own
                .iter()
                .map(|pair| list(pair.iter().map(quoted).collect()));
            said.push_str(&format!("client = {}\n", list(pairs.collect())));
        }
        said
    }
}

/// The text with the entry for a mirror at `url` (`http://127.0.0.1:4002`). `server` is named where the
/// file says none: `None` where the registry is reached by its own name. `beside`: what counted while
/// there was no file.
///
/// # Errors
/// The text is not what containerd would read.
pub fn with_entry(
    text: &str,
    url: &str,
    server: Option<&str>,
    beside: &Certificates,
) -> Result<String, Unsound> {
    let text = without_entry(text)?;
    let document = read(&text)?;
    let at = first_table(&text, document.as_table());
    let (before, after) = text.split_at(at);
    let mut entry = String::new();
    if text.is_empty() {
        entry.push_str(&beside.said());
    }
    if let Some(server) = server
        && !document.as_table().contains_key("server")
    {
        entry.push_str(&format!("server = \"{server}\"\n"));
    }
    // A tag needs both, and `dial_timeout` counts since containerd 2.1.
    entry.push_str(&format!(
        "[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"200ms\"\n"
    ));
    let made = between(before, &entry, after);
    read(&made).map_err(|e| Unsound::NoPlace(e.to_string()))?;
    Ok(made)
}

/// An entry between its marks, so that what is around it can be had again byte for byte.
pub(super) fn between(before: &str, entry: &str, after: &str) -> String {
    let joined = !before.is_empty() && !before.ends_with('\n');
    let (line, said) = if joined { ("\n", JOINED) } else { ("", "") };
    format!("{before}{line}{BEGIN}\n{entry}{END}{said}\n{after}")
}

/// The text without the entry, as it was before.
///
/// # Errors
/// The entry has no end.
pub fn without_entry(text: &str) -> Result<String, Unsound> {
    let Some(begin) = text.find(BEGIN) else {
        return Ok(text.to_owned());
    };
    let rest = text.get(begin..).unwrap_or_default();
    let end = rest.find(END).ok_or(Unsound::Torn)? + END.len();
    let after = rest.get(end..).unwrap_or_default();
    let (joined, after) = match after.strip_prefix(JOINED) {
        Some(after) => (true, after),
        None => (false, after),
    };
    let after = after.strip_prefix('\n').unwrap_or(after);
    let mut before = text.get(..begin).unwrap_or_default();
    if joined && after.is_empty() {
        before = before.strip_suffix('\n').unwrap_or(before);
    }
    Ok(format!("{before}{after}"))
}

/// Whether the text has an entry.
#[must_use]
pub fn has_entry(text: &str) -> bool {
    text.contains(BEGIN)
}

pub(super) fn read(text: &str) -> Result<Document<&str>, Unsound> {
    Document::parse(text).map_err(|e| Unsound::Syntax(e.message().to_owned()))
}

/// Where the first table begins, its comments included; the end of the text where there is none.
fn first_table(text: &str, root: &Table) -> usize {
    let header = headers(root).into_iter().min().unwrap_or(text.len());
    let mut at = text
        .get(..header)
        .and_then(|t| t.rfind('\n'))
        .map_or(0, |n| n + 1);
    if header == text.len() {
        return header;
    }
    // Comments directly above belong to the table.
    while let Some(before) = text.get(..at.saturating_sub(1)) {
        let line_at = before.rfind('\n').map_or(0, |n| n + 1);
        let line = before.get(line_at..).unwrap_or_default();
        if at == 0 || !line.trim_start().starts_with('#') {
            break;
        }
        at = line_at;
    }
    at
}

/// Where headers of tables stand.
fn headers(table: &Table) -> Vec<usize> {
    let mut all = vec![];
    for (_, item) in table {
        match item {
            Item::Table(inner) => {
                if !inner.is_implicit() && !inner.is_dotted() {
                    all.extend(inner.span().map(|span| span.start));
                }
                all.extend(headers(inner));
            }
            Item::ArrayOfTables(inner) => {
                for inner in inner {
                    all.extend(inner.span().map(|span| span.start));
                    all.extend(headers(inner));
                }
            }
            Item::Value(_) | Item::None => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: &Certificates = &Certificates {
        authorities: vec![],
        own: vec![],
    };
    const URL: &str = "http://127.0.0.1:4002";

    /// The hosts of a file in its order, as containerd takes them.
    fn order(text: &str) -> Vec<String> {
        let mut hosts: Vec<_> = ["http://127.0.0.1:4002", "https://a.test", "https://b.test"]
            .into_iter()
            .filter_map(|h| Some((text.find(&format!("[host.\"{h}\"]"))?, h.to_owned())))
            .collect();
        hosts.sort();
        hosts.into_iter().map(|(_, host)| host).collect()
    }

    #[test]
    fn the_entry_comes_first_and_goes_without_a_trace() {
        let rows = [
            "",
            "server = \"https://a.test\"\n",
            "server = \"https://a.test\"",
            "server = \"https://a.test\"\n\n[host.\"https://a.test\"]\n  capabilities = [\"pull\"]\n[host.\"https://b.test\"]\n",
            "# all of it\n[host.\"https://a.test\"]\nskip_verify = true",
            "client = [\n[\"/a.cert\", \"/a.key\"]\n]\n# about a\n# more\n[host.\"https://a.test\"]\n[host.\"https://a.test\".header]\nx = \"[y]\"\n",
            "ca = '''\n[host.\"https://c.test\"]\n'''\n",
        ];
        for text in rows {
            let made = with_entry(text, URL, None, NONE).unwrap();
            assert_eq!(
                order(&made).first().map(String::as_str),
                Some(URL),
                "{made}"
            );
            assert!(has_entry(&made) && !has_entry(text));
            assert_eq!(without_entry(&made).unwrap(), text);
            assert_eq!(
                with_entry(&made, URL, None, NONE).unwrap(),
                made,
                "twice is once"
            );
            let moved = with_entry(&made, "http://127.0.0.1:1", None, NONE).unwrap();
            assert!(!moved.contains(URL));
        }
        let commented = with_entry(rows[5], URL, None, NONE).unwrap();
        assert!(
            commented.contains("dragonfly\n# about a\n# more\n[host"),
            "{commented}"
        );
    }

    #[test]
    fn the_server_is_named_where_the_file_names_none() {
        let made = with_entry("", URL, Some("http://r.test:5000"), NONE).unwrap();
        let read = Document::parse(made.as_str()).unwrap();
        assert_eq!(read["server"].as_str(), Some("http://r.test:5000"));
        let kept = with_entry(
            "server = \"https://own.test\"\n",
            URL,
            Some("http://r.test"),
            NONE,
        )
        .unwrap();
        let read = Document::parse(kept.as_str()).unwrap();
        assert_eq!(read["server"].as_str(), Some("https://own.test"));
    }

    #[test]
    fn certificates_beside_a_file_that_was_not_there_go_on_to_count() {
        let names = [
            "b.key",
            "b.cert",
            "ca \"a\".crt",
            "both.cert",
            "hosts.toml",
            "c.key",
            "ca.crt",
        ];
        let beside = Certificates::among(names.map(str::to_owned).to_vec());
        let server = Some("https://r.test:8443");
        let made = with_entry("", URL, server, &beside).unwrap();
        let document = Document::parse(made.as_str()).unwrap();
        let texts = |all: &toml_edit::Array| -> Vec<String> {
            let all = all.iter();
            all.map(|v| v.as_str().unwrap().to_owned()).collect()
        };
        let list = |name: &str| document[name].as_array().unwrap().clone();
        assert_eq!(texts(&list("ca")), ["ca \"a\".crt", "ca.crt"]);
        let pairs = list("client");
        let pairs: Vec<_> = pairs.iter().map(|p| texts(p.as_array().unwrap())).collect();
        assert_eq!(pairs, [["b.cert", "b.key"], ["both.cert", "both.cert"]]);
        assert_eq!(document["server"].as_str(), server);
        assert_eq!(with_entry(&made, URL, server, &beside).unwrap(), made);
        assert_eq!(without_entry(&made).unwrap(), "");
        // Where there is a file they did not count before either.
        let own = "server = \"https://r.test\"\n";
        let made = with_entry(own, URL, None, &beside).unwrap();
        assert!(!made.contains("ca ="), "{made}");
        assert!(Certificates::among(vec!["hosts.toml".to_owned()]).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        for text in ["server = ", "[host", "a = 1\na = 2\n"] {
            assert!(
                matches!(with_entry(text, URL, None, NONE), Err(Unsound::Syntax(_))),
                "{text}"
            );
        }
        let closed = "host = { \"https://a.test\" = { skip_verify = true } }\n";
        assert!(matches!(
            with_entry(closed, URL, None, NONE),
            Err(Unsound::NoPlace(_))
        ));
        let torn = with_entry("", URL, None, NONE).unwrap().replace(END, "");
        assert_eq!(without_entry(&torn), Err(Unsound::Torn));
    }

    proptest! {
        #[test]
        fn any_text_is_left_as_it_was_or_alone(text in "[a-z\\[\\]\"#=.\\n ]{0,60}") {
            if let Ok(made) = with_entry(&text, URL, Some("https://s.test"), NONE) {
                prop_assert_eq!(without_entry(&made).unwrap(), text);
            }
        }
    }
}
