//! Ask for cache lines ahead of their use. Changes no value and cannot fault.

/// Bytes of a cache line on every processor this runs on that can be asked.
const LINE: usize = 64;

/// Ask that part `index` of `parts` of `data` come into the second-level cache.
#[inline(always)]
pub(super) fn part<T>(data: &[T], index: usize, parts: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let lines = size_of_val(data).div_ceil(LINE);
        let share = lines.div_ceil(parts);
        let start = data.as_ptr().cast::<i8>();
        for line in (index * share..(index + 1) * share).take_while(|&line| line < lines) {
            // SAFETY: a prefetch reads nothing that the program sees; the address is within `data`.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(line * LINE)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, index, parts);
}
