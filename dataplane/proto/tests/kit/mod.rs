//! For tests of decoders: valid bytes changed at will, and what a call allocates. Also used, by path,
//! by the crates whose files and manifests come from outside.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use proptest::sample::Index;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks of it.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: usize) {
    // A thread that ends has no counter any more and still frees and allocates.
    let _ = ALLOCATED.try_with(|n| n.set(n.get().saturating_add(bytes)));
}

#[allow(
    unsafe_code,
    reason = "an allocator cannot be written without; each call goes on to the system's unchanged"
)]
// SAFETY: every method hands its arguments to `System`, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
}

/// What `f` gives, and the bytes it asked the allocator for on this thread, freed ones too.
pub(crate) fn allocated<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.get();
    let done = f();
    (done, ALLOCATED.get() - before)
}

/// One change of some bytes.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    /// Another byte.
    Set(Index, u8),
    /// The end is cut off here.
    Cut(Index),
    /// Bytes are put in.
    Insert(Index, Vec<u8>),
    /// A part comes once more at its end.
    Twice(Index, Index),
}

/// One to five changes.
pub(crate) fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<Index>;
    let edit = prop_oneof![
        // Limits are where decoders go wrong.
        4 => (at(), prop_oneof![Just(0u8), Just(0xff), Just(0x80), any::<u8>()]).prop_map(|(i, b)| Edit::Set(i, b)),
        1 => at().prop_map(Edit::Cut),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(i, b)| Edit::Insert(i, b)),
        1 => (at(), at()).prop_map(|(a, b)| Edit::Twice(a, b)),
    ];
    prop::collection::vec(edit, 1..6)
}

/// `bytes` after the changes.
pub(crate) fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let places = bytes.len() + 1;
        match edit {
            Edit::Set(at, byte) => {
                if let Some(b) = bytes.get_mut(at.index(places)) {
                    *b = *byte;
                }
            }
            Edit::Cut(at) => bytes.truncate(at.index(places)),
            Edit::Insert(at, more) => {
                let at = at.index(places);
                bytes.splice(at..at, more.iter().copied());
            }
            Edit::Twice(a, b) => {
                let (a, b) = (a.index(places), b.index(places));
                let part = bytes[a.min(b)..a.max(b)].to_vec();
                let end = a.max(b);
                bytes.splice(end..end, part);
            }
        }
    }
    bytes
}
