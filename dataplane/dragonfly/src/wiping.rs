//! Memory that is given back is wiped, so that what a client showed for an origin, and tokens, are gone
//! with the last who held them, copies that libraries made included.
//!
//! Large pieces hold content, not credentials: wiping those would cost every byte that goes through a
//! node.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ptr;

/// The largest piece that is wiped: twice a frame of HTTP/2, or a record of TLS.
const LARGEST: usize = 32 << 10;

/// The system's allocator, which gets pieces back wiped.
struct Wiping;

#[global_allocator]
static WIPING: Wiping = Wiping;

#[allow(
    unsafe_code,
    reason = "an allocator cannot be written without; all that this one does is write to pieces that it \
              was given back"
)]
// SAFETY: every method hands its arguments to `System`, which keeps the contract; what is written
// before lies within the piece that the caller gives up.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() > LARGEST {
            return unsafe { System.realloc(at, layout, size) };
        }
        // The system may move it, and would leave the old place as it is.
        unsafe {
            let to = System.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !to.is_null() {
                ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                self.dealloc(at, layout);
            }
            to
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if layout.size() <= LARGEST {
            unsafe { ptr::write_bytes(at, 0, layout.size()) };
            // Else the compiler may see that nobody reads what was written.
            black_box(at);
        }
        unsafe { System.dealloc(at, layout) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_grows_and_shrinks_past_the_largest_piece_keeps_its_bytes() {
        let mut all = vec![];
        for n in 0..100_000u32 {
            all.push(n);
        }
        assert!(size_of_val(&*all) > super::LARGEST);
        all.truncate(1_000);
        all.shrink_to_fit();
        assert!(all.iter().copied().eq(0..1_000));
    }
}
