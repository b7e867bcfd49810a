//! Zeroed buffers whose pages are first touched by the thread that fills them, and whose failure is a value.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use std::alloc::{Layout, alloc_zeroed, dealloc};

use super::Real;
use crate::error::Error;

const LINE: usize = 64;
/// From this size on a buffer is asked to live on huge pages: with 4 KiB pages the whole assembly runs at three quarters of its rate.
const HUGE: usize = 2 << 20;

/// A zeroed, cache-line-aligned buffer of `F`.
pub struct Buffer<F> {
    start: *mut u8,
    bytes: usize,
    layout: Layout,
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
        // The system's own zero pages: aligned by hand, so that no thread touches them here.
        let room = bytes.max(1).checked_add(LINE).ok_or_else(too_large)?;
        let layout = Layout::from_size_align(room, 16).map_err(|_| too_large())?;
        // SAFETY: the layout has a size of at least one byte.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            return Err(Error::Allocation { bytes: room });
        }
        advise_huge_pages(start, room);
        Ok(Self { start, bytes, layout, element: PhantomData })
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
        // SAFETY: `start` came from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.start, self.layout) }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: *mut u8, bytes: usize) {
    let page = start.align_offset(4096);
    if bytes < HUGE + page {
        return;
    }
    // SAFETY: the range lies within the allocation; the advice changes no contents.
    unsafe {
        libc::madvise(start.wrapping_add(page).cast(), bytes - page, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: *mut u8, _: usize) {}
