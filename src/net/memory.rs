//! What of this process is in memory, and giving back what is not needed.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the pages of the program's own text; tells how many bytes it covers.
///
/// What only the start needed does not come back; what is needed does, a page fault for every 64 KiB, from the page
/// cache. Half of the resident set of a proxy that has just started is text that is not executed again.
///
/// # Errors
/// As `/proc/self/maps` and madvise(2) say. A program that cannot be found in the maps is no error.
pub fn release_text() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read("/proc/self/maps")?;
    let mut released = 0;
    for line in maps.split(|byte| *byte == b'\n') {
        if let Some((start, length)) = text(line, program.as_os_str().as_bytes()) {
            release(start, length)?;
            released += length;
        }
    }
    Ok(released)
}

/// Where a line of the maps says that text of `program` is: address and length.
fn text(line: &[u8], program: &[u8]) -> Option<(NonNull<c_void>, usize)> {
    let head = line.strip_suffix(program)?.strip_suffix(b" ")?;
    let mut fields = std::str::from_utf8(head).ok()?.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    // Never written: a page of it can only be what the file has.
    (fields.next()? == "r-xp").then_some(())?;
    let address = NonNull::new(std::ptr::with_exposed_provenance_mut(start))?;
    Some((address, end.checked_sub(start)?))
}

#[expect(unsafe_code, reason = "madvise can take away what is in memory")]
fn release(start: NonNull<c_void>, length: usize) -> io::Result<()> {
    // SAFETY: the range is one mapping of the program's file without the right to write, so its pages hold what the file
    // holds, and the next access reads them again.
    Ok(unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }?)
}

/// Gives freed memory that the allocator still holds back to the kernel.
///
/// It locks the heap for as long as it looks through what is free: for times when nothing else is done.
pub fn release_heap() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a function of C")]
    // SAFETY: it has no conditions; see malloc_trim(3).
    let _ = unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_the_program_is_released() {
        let line = |text: &str| super::text(text.as_bytes(), b"/warren").map(|(start, length)| (start.as_ptr() as usize, length));
        let is = |text| line(text) == Some((0x40_0000, 0x1000));
        assert!(is("00400000-00401000 r-xp 00001000 fe:00 77 /warren"));
        assert!(is("00400000-00401000 r-xp 00001000 fe:00 77                         /warren"));
        assert!(!is("00400000-00401000 r--p 00001000 fe:00 77 /warren"), "may have been written before it was protected");
        assert!(!is("00400000-00401000 rwxp 00001000 fe:00 77 /warren"));
        assert!(!is("00400000-00401000 r-xp 00001000 fe:00 77 /lib/warren"));
        assert!(!is("00400000-00401000 r-xp 00000000 00:00 0 [vdso]"));
        assert!(!is(""));
    }

    #[test]
    fn the_program_goes_on() {
        assert!(release_text().expect("released") > 0);
        release_heap();
        assert!(release_text().expect("released again") > 0);
    }
}
