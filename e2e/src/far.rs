//! A long way between two network interfaces: what enters one leaves the other a while later.
//!
//! Two TAP devices and two threads; the kernel's own means (netem) is not everywhere. Devices are made in
//! the namespace of whoever makes the way, and may be moved to others: they go when it is dropped.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::ioctl;

use crate::{Failed, Result};

/// A way looks this often whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Frames taken in before those that are due are let out.
const BURST: usize = 64;
/// Frames that a way holds at most, as long ones some 100 MB; what comes on top is lost, as in a router.
const MOST: usize = 1 << 16;
/// The longest frame of an interface of the usual 1500 bytes, and more.
const FRAME: usize = 16 << 10;

/// A way. It ends when dropped.
#[derive(Debug)]
pub struct Far {
    stop: Arc<AtomicBool>,
    ways: Vec<JoinHandle<()>>,
}

impl Far {
    /// Makes a way between two new interfaces of these names, `one_way` long each way.
    ///
    /// # Errors
    /// The kernel refuses: names that are taken, no `/dev/net/tun`, nobody who may.
    pub fn new(names: [&str; 2], one_way: Duration) -> Result<Self> {
        let [a, b] = names.map(|name| tap(name).map_err(|e| Failed::at(name, e)));
        let (a, b) = (Arc::new(a?), Arc::new(b?));
        let stop = Arc::new(AtomicBool::new(false));
        let way = |from: &Arc<File>, to: &Arc<File>| {
            let (from, to, stop) = (from.clone(), to.clone(), stop.clone());
            std::thread::spawn(move || carry(&from, &to, one_way, &stop))
        };
        Ok(Self {
            ways: vec![way(&a, &b), way(&b, &a)],
            stop,
        })
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for way in self.ways.drain(..) {
            let _ = way.join();
        }
    }
}

fn carry(mut from: &File, mut to: &File, one_way: Duration, stop: &AtomicBool) {
    let mut on_the_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut frame = vec![0; FRAME];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while on_the_way.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, frame)) = on_the_way.pop_front() {
                // An interface that is down, or full, loses it.
                let _ = to.write(&frame);
            }
        }
        let due = on_the_way.front().map(|(due, _)| due.duration_since(now));
        let wait = Timespec::try_from(due.map_or(LOOK, |due| due.min(LOOK))).ok();
        let mut fds = [PollFd::new(from, PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, wait.as_ref());
        for _ in 0..BURST {
            let Ok(n) = from.read(&mut frame) else {
                break;
            };
            if on_the_way.len() < MOST {
                on_the_way.push_back((Instant::now() + one_way, frame[..n].to_vec()));
            }
        }
    }
}

/// A new interface, and the file that its frames are read from and written to.
fn tap(name: &str) -> io::Result<File> {
    /// `struct ifreq` of linux/if.h, as `TUNSETIFF` reads it.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    /// `IFF_TAP | IFF_NO_PI`: frames of Ethernet, with nothing before them.
    const FLAGS: u16 = 0x0002 | 0x1000;
    /// `_IOW('T', 202, int)` of linux/if_tun.h.
    const TUNSETIFF: ioctl::Opcode = ioctl::opcode::write::<i32>(b'T', 202);

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/net/tun")?;
    let mut request = Request {
        name: [0; 16],
        flags: FLAGS,
        rest: [0; 22],
    };
    let room = request.name.len() - 1;
    let name = name.as_bytes().get(..room.min(name.len()));
    for (to, from) in request.name.iter_mut().zip(name.unwrap_or_default()) {
        *to = *from;
    }
    #[expect(
        unsafe_code,
        reason = "no crate in the build has a safe call for this device"
    )]
    // SAFETY: `TUNSETIFF` reads a `struct ifreq`, of which `Request` has the layout and size.
    unsafe {
        ioctl::ioctl(&file, ioctl::Setter::<TUNSETIFF, Request>::new(request))?;
    }
    Ok(file)
}
