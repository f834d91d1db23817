//! YAML as JSON values, with the place of every field.
//!
//! Reads what `kubectl` reads: plain scalars as go-yaml takes them (`yes` is true, `010` is eight),
//! several documents a file, anchors. Refused: duplicate keys, merge keys, tags other than the core
//! ones, and whatever takes too many nodes, too much text or too deep a nesting, so that a file of
//! bounded length costs bounded time and memory (aliases included).
//!
//! Invariant: no recursion over the input, and values come out at most [`MAX_DEPTH`] deep.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Number, Value};
use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};

/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most nodes of a file, aliases expanded.
const MAX_NODES: usize = 100_000;
/// Most text of a file, aliases expanded.
const MAX_TEXT: usize = 4 << 20;

/// A place in a file; both count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// What cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct YamlError {
    pub(super) position: Position,
    pub(super) field: String,
    pub(super) message: String,
}

/// One document.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Document {
    pub(super) value: Value,
    pub(super) places: Places,
}

/// Where the fields of one document stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    start: Position,
    fields: BTreeMap<String, Position>,
}

impl Places {
    /// The place of a field; when it is left out, that of the closest field around it.
    pub fn find(&self, field: &str) -> Position {
        let mut path = field;
        loop {
            if let Some(position) = self.fields.get(path) {
                return *position;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.start,
            }
        }
    }
}

enum Frame {
    Map {
        fields: Map<String, Value>,
        key: Option<String>,
        path: String,
        anchor: usize,
    },
    List {
        items: Vec<Value>,
        path: String,
        anchor: usize,
    },
}

/// Builds one document out of events.
#[derive(Default)]
struct Builder {
    stack: Vec<Frame>,
    anchors: HashMap<usize, Value>,
    document: Document,
    started: bool,
    nodes: usize,
    text: usize,
}

type Result<T> = std::result::Result<T, YamlError>;

/// Documents of a file; empty ones are left out.
pub(super) fn read(text: &str) -> Result<Vec<Document>> {
    let mut options = Options::default();
    options.emit_comments = false;
    options.flow_nesting_limit = MAX_DEPTH + 1;
    options.block_nesting_limit = MAX_DEPTH + 1;
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut documents = Vec::new();
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| YamlError {
            position: Position {
                line: error.marker().line(),
                column: error.marker().col() + 1,
            },
            field: builder.path(),
            message: error.info(),
        })?;
        match event {
            Event::DocumentStart(..) => {
                // Budgets are for the file, not for the document.
                let (nodes, text) = (builder.nodes, builder.text);
                builder = Builder {
                    nodes,
                    text,
                    ..Builder::default()
                };
            }
            Event::DocumentEnd => {
                let document = std::mem::take(&mut builder.document);
                if !document.value.is_null() {
                    documents.push(document);
                }
            }
            event => builder.event(event, &span)?,
        }
    }
    Ok(documents)
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<()> {
        let at = Position {
            line: span.start.line(),
            column: span.start.col() + 1,
        };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.spend(1, text.len(), at)?;
                if self.wants_key() {
                    return self.key(&text, style, at);
                }
                let value = self.scalar(&text, style, tag.as_deref(), at)?;
                self.begin(at);
                if anchor > 0 {
                    self.anchors.insert(anchor, value.clone());
                }
                self.put(value);
            }
            Event::SequenceStart(_, anchor, tag) => {
                let path = self.open(tag.as_deref(), "seq", at)?;
                self.stack.push(Frame::List {
                    items: Vec::new(),
                    path,
                    anchor,
                });
            }
            Event::MappingStart(_, anchor, tag) => {
                let path = self.open(tag.as_deref(), "map", at)?;
                self.stack.push(Frame::Map {
                    fields: Map::new(),
                    key: None,
                    path,
                    anchor,
                });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (value, anchor) = match self.stack.pop() {
                    Some(Frame::Map { fields, anchor, .. }) => (Value::Object(fields), anchor),
                    Some(Frame::List { items, anchor, .. }) => (Value::Array(items), anchor),
                    None => return Ok(()),
                };
                if anchor > 0 {
                    // A copy is held, so it counts.
                    let (nodes, text, _) = weigh(&value);
                    self.spend(nodes, text, at)?;
                    self.anchors.insert(anchor, value.clone());
                }
                self.put(value);
            }
            Event::Alias(anchor) => {
                if self.wants_key() {
                    return Err(self.wrong(at, "an alias as a key is not supported"));
                }
                let Some(value) = self.anchors.get(&anchor) else {
                    return Err(self.wrong(at, "an alias inside of what it names"));
                };
                let (nodes, text, depth) = weigh(value);
                if self.stack.len() + depth > MAX_DEPTH {
                    return Err(self.wrong(at, "nested too deep"));
                }
                let value = value.clone();
                self.spend(nodes, text, at)?;
                self.begin(at);
                self.put(value);
            }
            _ => {}
        }
        Ok(())
    }

    /// Where the next value goes.
    fn path(&self) -> String {
        match self.stack.last() {
            Some(Frame::Map { path, key, .. }) => match key {
                Some(key) if path.is_empty() => key.clone(),
                Some(key) => format!("{path}.{key}"),
                None => path.clone(),
            },
            Some(Frame::List { items, path, .. }) => format!("{path}[{}]", items.len()),
            None => String::new(),
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame::Map { key: None, .. }))
    }

    fn wrong(&self, position: Position, message: impl Into<String>) -> YamlError {
        YamlError {
            position,
            field: self.path(),
            message: message.into(),
        }
    }

    fn spend(&mut self, nodes: usize, text: usize, at: Position) -> Result<()> {
        self.nodes += nodes;
        self.text += text;
        if self.nodes > MAX_NODES || self.text > MAX_TEXT {
            return Err(self.wrong(at, "too many or too long values, aliases included"));
        }
        Ok(())
    }

    /// Notes where a value stands that has no key of its own.
    fn begin(&mut self, at: Position) {
        if !self.started {
            self.started = true;
            self.document.places.start = at;
        }
        if matches!(self.stack.last(), Some(Frame::List { .. })) {
            let path = self.path();
            self.document.places.fields.insert(path, at);
        }
    }

    fn open(&mut self, tag: Option<&Tag>, core: &str, at: Position) -> Result<String> {
        self.spend(1, 0, at)?;
        if self.stack.len() >= MAX_DEPTH {
            return Err(self.wrong(at, "nested too deep"));
        }
        if self.wants_key() {
            return Err(self.wrong(at, "a key must be text"));
        }
        if tag.is_some_and(|tag| !tag.is_yaml_core_schema_tag(core)) {
            return Err(self.wrong(at, "tags are not supported"));
        }
        self.begin(at);
        Ok(self.path())
    }

    fn key(&mut self, text: &str, style: ScalarStyle, at: Position) -> Result<()> {
        if style == ScalarStyle::Plain && text == "<<" {
            return Err(self.wrong(at, "merge keys are not supported"));
        }
        let duplicate = matches!(self.stack.last(), Some(Frame::Map { fields, .. }) if fields.contains_key(text));
        if duplicate {
            let shown = crate::field::quoted(text);
            return Err(self.wrong(at, format!("key {shown} already set in map")));
        }
        if let Some(Frame::Map { key, .. }) = self.stack.last_mut() {
            *key = Some(text.to_owned());
        }
        let path = self.path();
        // Paths grow with depth: they are text that is held as well.
        self.spend(0, path.len(), at)?;
        self.document.places.fields.insert(path, at);
        Ok(())
    }

    fn put(&mut self, value: Value) {
        match self.stack.last_mut() {
            Some(Frame::Map { fields, key, .. }) => {
                if let Some(key) = key.take() {
                    fields.insert(key, value);
                }
            }
            Some(Frame::List { items, .. }) => items.push(value),
            None => self.document.value = value,
        }
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: Position,
    ) -> Result<Value> {
        match tag {
            Some(tag) if tag.is_yaml_core_schema_tag("str") => return Ok(text.into()),
            Some(_) => return Err(self.wrong(at, "tags are not supported")),
            None if style != ScalarStyle::Plain => return Ok(text.into()),
            None => {}
        }
        plain(text).ok_or_else(|| self.wrong(at, "a number that JSON cannot hold"))
    }
}

/// Nodes, bytes of text and depth of a value.
fn weigh(value: &Value) -> (usize, usize, usize) {
    let children = |parts: &mut dyn Iterator<Item = &Value>| {
        parts.map(weigh).fold((1, 0, 0), |sum, part| {
            (sum.0 + part.0, sum.1 + part.1, sum.2.max(part.2))
        })
    };
    match value {
        Value::String(text) => (1, text.len(), 1),
        Value::Array(items) => {
            let (nodes, text, depth) = children(&mut items.iter());
            (nodes, text, depth + 1)
        }
        Value::Object(fields) => {
            let (nodes, text, depth) = children(&mut fields.values());
            (
                nodes,
                text + fields.keys().map(String::len).sum::<usize>(),
                depth + 1,
            )
        }
        _ => (1, 0, 1),
    }
}

/// A plain scalar as go-yaml takes it. `None` for numbers without a form in JSON.
fn plain(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            return Some(true.into());
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return Some(false.into());
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "-.inf" | ".nan" | ".NaN" | ".NAN" => return None,
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return Some(text.into());
    }
    if let Some(integer) = integer(text.starts_with('-'), &unsigned.replace('_', "")) {
        return Some(integer.into());
    }
    let float = unsigned
        .bytes()
        .all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    match text.parse::<f64>() {
        Ok(number) if float => Number::from_f64(number).map(Value::Number),
        _ => Some(text.into()),
    }
}

fn integer(negative: bool, digits: &str) -> Option<i64> {
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // `from_str_radix` takes a sign of its own.
    if !digits.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_scalars_read_as_kubectl_reads_them() {
        let rows = [
            ("1", json!(1)),
            ("-7", json!(-7)),
            ("010", json!(8)),
            ("0x10", json!(16)),
            ("1_000", json!(1000)),
            ("1.5", json!(1.5)),
            ("100Mi", json!("100Mi")),
            ("1h30m", json!("1h30m")),
            ("yes", json!(true)),
            ("~", json!(null)),
            ("1.2.3", json!("1.2.3")),
            ("-", json!("-")),
            ("0x", json!("0x")),
            ("0-1", json!("0-1")),
        ];
        for (text, wanted) in rows {
            assert_eq!(plain(text), Some(wanted), "{text}");
        }
        assert_eq!(plain(".inf"), None);
    }

    #[test]
    fn every_style_knows_its_places() {
        let text = "a:\n  b: {c: [1, 2]}\n---\n# nothing\n---\nd:\n- e: |\n    text\n- 'f'\n";
        let documents = read(text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].value, json!({"a": {"b": {"c": [1, 2]}}}));
        assert_eq!(documents[1].value, json!({"d": [{"e": "text\n"}, "f"]}));
        let place = |document: usize, field: &str| {
            let Position { line, column } = documents[document].places.find(field);
            (line, column)
        };
        assert_eq!(place(0, "a.b"), (2, 3));
        assert_eq!(place(0, "a.b.c[1]"), (2, 14));
        assert_eq!(place(0, "a.b.missing.field"), (2, 3));
        assert_eq!(place(1, "d[0].e"), (7, 3));
        assert_eq!(place(1, "d[1]"), (9, 3));
        assert_eq!(place(1, "elsewhere"), (6, 1));
    }

    #[test]
    fn anchors_work_within_a_budget() {
        let documents = read("a: &x {b: 1}\nc: *x\n").unwrap();
        assert_eq!(documents[0].value, json!({"a": {"b": 1}, "c": {"b": 1}}));
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let below = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(read(&bomb).unwrap_err().message.contains("too many"));
        assert!(read("a: &a [*a]\n").is_err());
    }

    #[test]
    fn what_kubectl_would_take_differently_is_refused() {
        let rows = [
            ("a: 1\na: 2\n", "already set", 2),
            ("a: &x {b: 1}\nc:\n  <<: *x\n", "merge keys", 3),
            ("a: !secret b\n", "tags", 1),
            ("? [a]\n: b\n", "key", 1),
            ("a: .inf\n", "number", 1),
        ];
        for (text, wanted, line) in rows {
            let error = read(text).unwrap_err();
            assert!(error.message.contains(wanted), "{text}: {}", error.message);
            assert_eq!(error.position.line, line, "{text}");
        }
        for deep in ["[".repeat(5000), "- ".repeat(5000), "{a: ".repeat(5000)] {
            assert!(read(&deep).is_err());
        }
    }
}
