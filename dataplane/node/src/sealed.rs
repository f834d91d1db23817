//! What a client shows an origin leaves this node sealed for the mesh's seeds: schedulers pass it on, and
//! keep it for as long as the content is wanted, and can read none of it.
//!
//! Where there is no seed and policy lets peers read the origin, one that is asked to has a client of
//! its own that wants the same, and uses what that one showed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use dragonfly_proto::id::RequestKey;
use dragonfly_proto::rpc::{self, failure::Code, from_node};
use dragonfly_transport::{SealError, SealedText, Sealing};
use prost::Message as _;
use tokio::time::Instant;

use crate::node::{Node, Role};
use crate::task::lock;

/// How long a seed that lacks a key waits for another certificate, which brings it.
const KEYS: Duration = Duration::from_secs(5);

/// Seals whatever source is in a message to a scheduler.
pub(crate) fn sealed(message: from_node::Message, keys: &Sealing) -> from_node::Message {
    let mut message = message;
    let source = match &mut message {
        from_node::Message::Resolve(m) => &mut m.source,
        from_node::Message::Join(m) => &mut m.source,
        from_node::Message::Import(m) => &mut m.source,
        from_node::Message::NeedSource(m) => &mut m.source,
        _ => return message,
    };
    if let Some(source) = source {
        seal(source, keys);
    }
    message
}

fn seal(source: &mut rpc::Source, keys: &Sealing) {
    let url = source.public_url();
    if source.headers.is_empty() && url == source.url {
        return;
    }
    let shown = rpc::Shown {
        url: source.url.clone(),
        headers: source.headers.clone(),
    };
    let sealed = match keys.seal(&shown.encode_to_vec()) {
        Ok(Some(sealed)) => Some(sealed),
        // A mesh in plaintext, by its policy's word.
        Ok(None) => return,
        Err(error) => {
            tracing::error!(%error, "what a client shows its origin stays here");
            None
        }
    };
    source.sealed = sealed.map(|sealed| rpc::Sealed {
        key: sealed.key,
        encapsulated: sealed.encapsulated,
        text: sealed.text,
    });
    source.url = url;
    source.headers.clear();
}

/// A source as a client gave it.
fn open(mut source: rpc::Source, keys: &Sealing) -> Result<rpc::Source, SealError> {
    let Some(sealed) = source.sealed.take() else {
        return Ok(source);
    };
    let text = keys.open(&SealedText {
        key: sealed.key,
        encapsulated: sealed.encapsulated,
        text: sealed.text,
    })?;
    let shown = rpc::Shown::decode(&*text).map_err(|_| SealError::Broken)?;
    let public = std::mem::replace(&mut source.url, shown.url);
    source.headers = shown.headers;
    // What is sealed for one origin is shown to no other.
    if source.public_url() == public {
        Ok(source)
    } else {
        Err(SealError::Broken)
    }
}

/// What clients of this node ask schedulers for now.
#[derive(Default)]
pub(crate) struct Asking(Mutex<HashMap<RequestKey, (usize, rpc::Source)>>);

impl Asking {
    fn all(&self) -> MutexGuard<'_, HashMap<RequestKey, (usize, rpc::Source)>> {
        lock(&self.0)
    }

    /// Kept until the guard goes.
    pub(crate) fn for_now<'a>(&'a self, key: &RequestKey, source: &rpc::Source) -> ForNow<'a> {
        let mut all = self.all();
        let entry = all.entry(*key).or_insert_with(|| (0, source.clone()));
        entry.0 += 1;
        ForNow {
            asking: self,
            key: *key,
        }
    }
}

/// A client asks for this.
pub(crate) struct ForNow<'a> {
    asking: &'a Asking,
    key: RequestKey,
}

impl Drop for ForNow<'_> {
    fn drop(&mut self) {
        let mut all = self.asking.all();
        if let Some((clients, _)) = all.get_mut(&self.key) {
            *clients -= 1;
            if *clients == 0 {
                all.remove(&self.key);
            }
        }
    }
}

impl Node {
    /// Opens a source that came from a scheduler. `request`: a question of this node's clients that it
    /// may answer as well.
    pub(crate) async fn opened(
        &self,
        source: rpc::Source,
        request: Option<&RequestKey>,
    ) -> Result<rpc::Source, rpc::Failure> {
        let until = Instant::now() + KEYS;
        let mut error = match open(source.clone(), &self.security.sealing()) {
            Ok(source) => return Ok(source),
            Err(error) => error,
        };
        let own = request.and_then(|key| self.asking.all().get(key).map(|(_, own)| own.clone()));
        if let Some(own) = own {
            return Ok(own);
        }
        // Only a seed can be given the key.
        while error == SealError::UnknownKey && self.identity.role == Role::Seed {
            let changed = self.keys_changed.notified();
            self.keys_wanted.notify_one();
            if tokio::time::timeout_at(until, changed).await.is_err() {
                break;
            }
            match open(source.clone(), &self.security.sealing()) {
                Ok(source) => return Ok(source),
                Err(again) => error = again,
            }
        }
        let text = format!("what the client shows {}: {error}", source.url);
        Err(rpc::Failure::new(Code::Internal, text))
    }

    /// Until a certificate is wanted for the keys that come with it: something is sealed for one that
    /// this node does not have.
    pub async fn keys_wanted(&self) {
        self.keys_wanted.notified().await;
    }

    /// Another certificate is in use, and with it other keys.
    pub fn keys_changed(&self) {
        self.keys_changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use dragonfly_transport::OpeningKey;

    use super::*;

    fn keys(of: &[u8]) -> Sealing {
        let key = OpeningKey::derived(of).unwrap();
        Sealing {
            seal_for: Some(*key.public()),
            open_with: vec![key],
        }
    }

    fn source(url: &str, headers: &[(&str, &str)]) -> rpc::Source {
        rpc::Source {
            url: url.to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| rpc::Header {
                    name: (*name).to_owned(),
                    value: (*value).to_owned(),
                })
                .collect(),
            digest: "sha256:00".to_owned(),
            ..rpc::Source::default()
        }
    }

    fn sent(source: &rpc::Source, keys: &Sealing) -> rpc::Source {
        let message = from_node::Message::Resolve(rpc::Resolve {
            source: Some(source.clone()),
            ..rpc::Resolve::default()
        });
        match sealed(message, keys) {
            from_node::Message::Resolve(m) => m.source.unwrap(),
            _ => unreachable!(),
        }
    }

    #[test]
    fn what_may_be_secret_is_for_the_seeds_alone_and_comes_back_whole() {
        let ours = keys(b"ours");
        let rows = [
            source("https://h/a", &[("Authorization", "Bearer topsecret")]),
            source("https://h/a?sig=topsecret", &[]),
            source("https://user:topsecret@h/a", &[]),
            source("https://h?topsecret", &[("x", "topsecret")]),
        ];
        for given in rows {
            let sent = sent(&given, &ours);
            let bytes = sent.encode_to_vec();
            let word = b"topsecret";
            assert!(!bytes.windows(word.len()).any(|w| w == word), "{sent:?}");
            assert_eq!(sent.url, given.public_url());
            assert_eq!(sent.digest, given.digest);
            assert_eq!(open(sent.clone(), &ours).unwrap(), given);
            assert_eq!(
                open(sent, &keys(b"theirs")),
                Err(SealError::UnknownKey),
                "{given:?}"
            );
        }
    }

    #[test]
    fn what_is_public_is_sent_as_it_is() {
        let given = source("https://h:1/a", &[]);
        assert_eq!(sent(&given, &keys(b"ours")), given);
        // And where policy says plaintext, everything.
        let given = source("https://h/a?x", &[("a", "b")]);
        assert_eq!(sent(&given, &Sealing::default()), given);
    }

    #[test]
    fn what_is_sealed_for_one_origin_is_shown_to_no_other() {
        let ours = keys(b"ours");
        let mut sent = sent(&source("https://h/a", &[("a", "b")]), &ours);
        sent.url = "https://elsewhere/a".to_owned();
        assert_eq!(open(sent, &ours), Err(SealError::Broken));
    }

    #[test]
    fn what_clients_ask_for_is_kept_while_one_of_them_does() {
        let asking = Asking::default();
        let key = RequestKey([1; 32]);
        let first = asking.for_now(&key, &source("https://h/a", &[]));
        let second = asking.for_now(&key, &source("https://h/a", &[]));
        drop(first);
        assert_eq!(asking.all().len(), 1);
        drop(second);
        assert!(asking.all().is_empty());
    }
}
