//! Zeroed buffers whose pages are first touched by the thread that fills them, and whose failure is a value.
//!
//! Large buffers come from the system as they are (never from a heap that would clear them on one thread) and are asked to live on
//! huge pages: with 4 KiB pages the whole assembly runs at three quarters of its rate.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use std::alloc::{Layout, alloc_zeroed, dealloc};

use super::Real;
use crate::error::Error;

const LINE: usize = 64;
/// From this size on a buffer is a mapping of its own.
const LARGE: usize = 1 << 20;

/// A zeroed, cache-line-aligned buffer of `F`.
pub struct Buffer<F> {
    start: *mut u8,
    bytes: usize,
    room: usize,
    element: PhantomData<F>,
}

// SAFETY: the buffer owns its memory, and `F: Real` is plain data.
unsafe impl<F: Real> Send for Buffer<F> {}
// SAFETY: as above; shared access only reads.
unsafe impl<F: Real> Sync for Buffer<F> {}

impl<F: Real> Buffer<F> {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`Error::Size`] if the bytes overflow, [`Error::Allocation`] if the system has no room.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        let too_large = || Error::Size { what: format!("a buffer of {len} elements") };
        let bytes = len.checked_mul(size_of::<F>()).ok_or_else(too_large)?;
        let room = bytes.checked_add(LINE).filter(|&room| room <= isize::MAX as usize);
        let room = room.ok_or_else(too_large)?;
        let start = allocate(room).ok_or(Error::Allocation { bytes: room })?;
        Ok(Self { start, bytes, room, element: PhantomData })
    }

    fn first(&self) -> *mut F {
        self.start.wrapping_add(self.start.align_offset(LINE)).cast()
    }
}

impl<F: Real> Deref for Buffer<F> {
    type Target = [F];
    fn deref(&self) -> &[F] {
        // SAFETY: `zeroed` left room for the alignment; the bytes are initialised, and zero is a value of `F`.
        unsafe { core::slice::from_raw_parts(self.first(), self.bytes / size_of::<F>()) }
    }
}

impl<F: Real> DerefMut for Buffer<F> {
    fn deref_mut(&mut self) -> &mut [F] {
        // SAFETY: as for `deref`, and the buffer is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.first(), self.bytes / size_of::<F>()) }
    }
}

impl<F> Drop for Buffer<F> {
    fn drop(&mut self) {
        release(self.start, self.room);
    }
}

fn layout(room: usize) -> Option<Layout> {
    Layout::from_size_align(room, LINE).ok()
}

fn allocate(room: usize) -> Option<*mut u8> {
    #[cfg(target_os = "linux")]
    if room >= LARGE {
        return map(room);
    }
    // SAFETY: the layout has a size of at least one line.
    let start = unsafe { alloc_zeroed(layout(room)?) };
    (!start.is_null()).then_some(start)
}

fn release(start: *mut u8, room: usize) {
    #[cfg(target_os = "linux")]
    if room >= LARGE {
        // SAFETY: `map` returned this range, and nothing borrows it any more.
        unsafe { libc::munmap(start.cast(), room) };
        return;
    }
    if let Some(layout) = layout(room) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout.
        unsafe { dealloc(start, layout) }
    }
}

#[cfg(target_os = "linux")]
fn map(room: usize) -> Option<*mut u8> {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: an anonymous mapping at an address of the system's choice touches no other memory.
    let start = unsafe { libc::mmap(core::ptr::null_mut(), room, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the range is the mapping; the advice changes no contents.
    unsafe { libc::madvise(start, room, libc::MADV_HUGEPAGE) };
    Some(start.cast())
}
