//! The keys of one direction and the numbers of its records (RFC 8446, section 5). No IO.

use std::io;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce,
    UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

/// Type, version and length.
pub(super) const HEADER: usize = 5;
/// Bytes of content in one record at most.
pub(super) const MAX_PLAIN: usize = 1 << 14;
/// Bytes behind a record's content: its type and the tag.
pub(super) const TRAILER: usize = 1 + TAG;
/// Bytes behind a header at most.
const MAX_SEALED: usize = MAX_PLAIN + 256;
const TAG: usize = 16;
/// Records sealed with one key at most: half of what AES-GCM allows (RFC 8446, section 5.5).
const MAX_RECORDS: u64 = 1 << 23;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Alert,
    Handshake,
    Data,
}

impl Content {
    const fn code(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    fn of(code: u8) -> io::Result<Self> {
        [Self::Alert, Self::Handshake, Self::Data]
            .into_iter()
            .find(|c| c.code() == code)
            .ok_or_else(|| bad("a record of an unknown type"))
    }
}

pub(crate) fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The keys and the number of the next record of one direction.
pub(crate) struct Direction {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    next: u64,
    first: u64,
}

impl Direction {
    pub(super) fn new((next, secrets): (u64, ConnectionTrafficSecrets)) -> io::Result<Self> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(bad("a cipher suite that is not TLS 1.3's")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref());
        let key = key.map_err(|_| bad("a key of the wrong length"))?;
        let iv = iv.as_ref().try_into();
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.map_err(|_| bad("an initial value of the wrong length"))?,
            next,
            first: next,
        })
    }

    /// Whether another key is due before the next record.
    pub(super) const fn is_used_up(&self) -> bool {
        self.next - self.first >= MAX_RECORDS
    }

    /// The number in the nonce never repeats with a key: it only grows.
    fn nonce(&mut self) -> io::Result<Nonce> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.next.to_be_bytes())
        {
            *byte ^= number;
        }
        self.next = self
            .next
            .checked_add(1)
            .ok_or_else(|| bad("no number is left"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Makes a record in place: `record` has room for the header, content is there behind it, and
    /// [`TRAILER`] bytes for the rest.
    pub(super) fn seal(&mut self, content: Content, record: &mut [u8]) -> io::Result<()> {
        let (header, body) = record
            .split_at_mut_checked(HEADER)
            .filter(|(_, body)| (TRAILER..=MAX_PLAIN + TRAILER).contains(&body.len()))
            .ok_or_else(|| bad("a record of a wrong size"))?;
        let len = (body.len() as u16).to_be_bytes();
        header.copy_from_slice(&[Content::Data.code(), 3, 3, len[0], len[1]]);
        let (inner, tag) = body.split_at_mut(body.len() - TAG);
        if let Some(last) = inner.last_mut() {
            *last = content.code();
        }
        let nonce = self.nonce()?;
        let sealed = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(&*header), inner);
        tag.copy_from_slice(sealed.map_err(|_| bad("cannot encrypt"))?.as_ref());
        Ok(())
    }

    /// Opens a record in place: what it holds, and its content at the beginning of `body`.
    pub(super) fn open<'a>(
        &mut self,
        header: &[u8],
        body: &'a mut [u8],
    ) -> io::Result<(Content, &'a mut [u8])> {
        let nonce = self.nonce()?;
        let inner = self.key.open_in_place(nonce, Aad::from(header), body);
        let inner = inner.map_err(|_| undecryptable())?;
        let (content, len) = unpadded(inner)?;
        Ok((content, &mut inner[..len]))
    }

    /// Opens a record elsewhere: `out` is as long as `body` without the tag.
    pub(super) fn open_to(
        &mut self,
        header: &[u8],
        body: &[u8],
        out: &mut [u8],
    ) -> io::Result<(Content, usize)> {
        let nonce = self.nonce()?;
        let (sealed, tag) = body
            .split_at_checked(out.len())
            .ok_or_else(|| bad("a record of a wrong size"))?;
        let opened = self
            .key
            .open_separate_gather(nonce, Aad::from(header), sealed, tag, out);
        opened.map_err(|_| undecryptable())?;
        unpadded(out)
    }
}

fn undecryptable() -> io::Error {
    bad("a record that does not fit this connection's keys")
}

/// Behind the content are its type and any number of zeros.
fn unpadded(inner: &[u8]) -> io::Result<(Content, usize)> {
    let at = inner.iter().rposition(|b| *b != 0);
    let at = at.ok_or_else(|| bad("a record without a type"))?;
    Ok((Content::of(inner[at])?, at))
}

/// The length of the body behind a header, none while the header is not whole.
pub(super) fn body_len(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(&[kind, _, _, high, low]) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    // After the handshake everything is sealed, and sealed records look like data.
    if kind != Content::Data.code() {
        return Err(bad("a record that is not encrypted"));
    }
    if !(TRAILER..=MAX_SEALED).contains(&len) {
        return Err(bad("a record of a wrong size"));
    }
    Ok(Some(len))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn direction() -> Direction {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap();
        Direction {
            key: LessSafeKey::new(key),
            iv: [9; NONCE_LEN],
            next: 0,
            first: 0,
        }
    }

    fn record(content: &[u8]) -> Vec<u8> {
        let mut record = vec![0; HEADER];
        record.extend_from_slice(content);
        record.resize(HEADER + content.len() + TRAILER, 0);
        record
    }

    #[test]
    fn what_is_sealed_is_opened_in_order_and_in_no_other() {
        let (mut sending, mut receiving) = (direction(), direction());
        let mut sealed = vec![];
        for n in 0..3u8 {
            let mut one = record(&[n; 100]);
            sending.seal(Content::Data, &mut one).unwrap();
            assert_eq!(body_len(&one).unwrap(), Some(one.len() - HEADER));
            sealed.push(one);
        }
        let mut out = vec![0; 101];
        let (header, body) = sealed[0].split_at(HEADER);
        let opened = receiving.open_to(header, body, &mut out).unwrap();
        assert_eq!((opened, &out[..100]), ((Content::Data, 100), &[0; 100][..]));
        let (header, body) = sealed[1].split_at_mut(HEADER);
        let (content, plain) = receiving.open(header, body).unwrap();
        assert_eq!((content, &*plain), (Content::Data, &[1; 100][..]));
        let mut again = direction();
        let (header, body) = sealed[2].split_at_mut(HEADER);
        assert!(again.open(header, body).is_err(), "it is not the first");
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let mut whole = record(b"content");
        direction().seal(Content::Handshake, &mut whole).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            let Ok(Some(_)) = body_len(&changed) else {
                continue;
            };
            let (header, body) = changed.split_at_mut(HEADER);
            assert!(direction().open(header, body).is_err(), "byte {at}");
        }
        let (header, body) = whole.split_at_mut(HEADER);
        let (content, plain) = direction().open(header, body).unwrap();
        assert_eq!((content, &*plain), (Content::Handshake, &b"content"[..]));
    }

    #[test]
    fn headers_of_any_bytes_are_refused_or_bounded() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let header: [u8; HEADER] = std::array::from_fn(|_| rng.u8(..));
            if let Ok(Some(len)) = body_len(&header) {
                assert!((TRAILER..=MAX_SEALED).contains(&len));
            }
        }
        assert_eq!(body_len(&[23, 3, 3, 0]).unwrap(), None);
    }

    #[test]
    fn padding_is_no_content_and_nothing_but_padding_is_an_error() {
        assert_eq!(unpadded(&[1, 2, 23, 0, 0]).unwrap(), (Content::Data, 2));
        assert!(unpadded(&[0, 0]).is_err());
        assert!(unpadded(&[1, 99]).is_err());
    }
}
