//! Highest-random-weight choice: which of some names a key belongs to, and who is next.
//!
//! Every node computes the same order from the same names, whatever order they come in; when a name
//! goes, only its keys move, each to the next in its own order. The weights are part of the
//! protocol between releases: a test pins them.

/// The candidates in the order in which they are responsible for `key`: the first is, the second
/// takes over when it is gone. Duplicates stay duplicates.
pub fn rendezvous<'a>(
    key: &[u8; 32],
    candidates: impl IntoIterator<Item = &'a str>,
) -> Vec<&'a str> {
    let mut ranked: Vec<(u64, &str)> = candidates
        .into_iter()
        .map(|name| (weight(key, name), name))
        .collect();
    // Equal weights (a collision, practically never) are settled by name, so that nodes agree.
    ranked.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    ranked.into_iter().map(|(_, name)| name).collect()
}

/// The weight of `name` for `key`: both absorbed eight bytes at a time, each step a bijection of
/// the state, then mixed until every input bit reaches every output bit.
fn weight(key: &[u8; 32], name: &str) -> u64 {
    let mut state = 0x6472_6167_6f6e_666c; // "dragonfl"
    for chunk in key.chunks(8).chain(name.as_bytes().chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = mix(state ^ u64::from_le_bytes(word));
    }
    // The length tells "a" from "a\0".
    mix(state ^ name.len() as u64)
}

/// A bijective finaliser: two rounds of xor-shift and multiplication by an odd constant.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> [u8; 32] {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&mix(n).to_le_bytes());
        key
    }

    #[test]
    fn the_order_does_not_depend_on_the_order_of_the_names() {
        let key = key(7);
        assert_eq!(
            rendezvous(&key, ["a", "b", "c"]),
            rendezvous(&key, ["c", "a", "b"])
        );
    }

    #[test]
    fn a_name_that_goes_moves_only_its_own_keys() {
        let names = ["seed-0", "seed-1", "seed-2", "seed-3"];
        for n in 0..1000 {
            let all = rendezvous(&key(n), names);
            let gone = rendezvous(&key(n), names.into_iter().filter(|name| *name != "seed-2"));
            let expected: Vec<&str> = all.iter().copied().filter(|n| *n != "seed-2").collect();
            assert_eq!(gone, expected);
        }
    }

    #[test]
    fn weights_are_the_same_in_every_release() {
        assert_eq!(weight(&[0; 32], ""), 0x93334b2cf7bf359a);
        assert_eq!(weight(&[0xff; 32], "seed-0"), 0x21dec43f8bb61bde);
        assert_eq!(weight(&key(1), "scheduler-12.example"), 0xc435cd4fa89571b7);
    }

    #[test]
    fn keys_spread_evenly() {
        let names = ["seed-0", "seed-1", "seed-2", "seed-3"];
        let mut counts = [0; 4];
        for n in 0..4000 {
            let first = rendezvous(&key(n), names)[0];
            counts[names.iter().position(|name| *name == first).unwrap()] += 1;
        }
        assert!(counts.iter().all(|n| (900..1100).contains(n)), "{counts:?}");
    }
}
