//! What of this process is in memory, and giving back what is not needed.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// The program's own file in memory, its text and constants: what of it is mapped and was never written.
///
/// What only the start needed does not come back; what is needed does, a page fault for every 64 KiB, from the page
/// cache. Half of the resident set of a proxy that has just started is text that is not executed again.
#[derive(Debug)]
pub struct Program {
    /// Address and length of each mapping.
    mappings: Vec<(usize, usize)>,
}

impl Program {
    /// Looks for it, which makes the kernel walk all of the process' pages. Once is enough: text stays where it is, and
    /// relocated data is written before `main`.
    ///
    /// # Errors
    /// As `/proc/self/smaps` says. A program that cannot be found there is no error.
    pub fn find() -> io::Result<Self> {
        let program = fs::read_link("/proc/self/exe")?;
        let maps = fs::read_to_string("/proc/self/smaps")?;
        Ok(Self { mappings: unwritten(&maps, &program.to_string_lossy()).collect() })
    }

    /// Unmaps its pages.
    ///
    /// # Errors
    /// As madvise(2).
    pub fn release(&self) -> io::Result<()> {
        self.mappings.iter().try_for_each(|&(start, length)| release(start, length))
    }
}

/// The mappings of `program` (address, length) that cannot be written and hold no page that ever was: relocated data is
/// written once, at the start, and then protected.
fn unwritten<'a>(smaps: &'a str, program: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    let mut mapping = None;
    smaps.lines().filter_map(move |line| {
        if let Some(head) = line.strip_suffix(program) {
            mapping = of_file(head);
        } else if let Some(written) = line.strip_prefix("Anonymous:") {
            mapping = mapping.filter(|_| written.trim() == "0 kB");
        } else if let Some(written) = line.strip_prefix("Swap:") {
            // Written pages that are not in memory now.
            return mapping.take().filter(|_| written.trim() == "0 kB");
        } else if !line.split(' ').next().is_some_and(|field| field.ends_with(':')) {
            // The head of another mapping.
            mapping = None;
        }
        None
    })
}

/// Address and length, from the head of a mapping that nobody may write, without the file's name.
fn of_file(head: &str) -> Option<(usize, usize)> {
    let mut fields = head.strip_suffix(' ')?.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    matches!(fields.next()?, "r-xp" | "r--p").then_some(())?;
    Some((start, end.checked_sub(start)?))
}

#[expect(unsafe_code, reason = "madvise can take away what is in memory")]
fn release(start: usize, length: usize) -> io::Result<()> {
    let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(start)) else { return Ok(()) };
    // SAFETY: the range is one mapping of the program's file, without the right to write and, when it was looked at after
    // the start, without a page that was ever written, so its pages hold what the file holds, and the next access reads
    // them again. Nothing in the program maps its text anew or writes to it.
    Ok(unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }?)
}

/// Sets how much freed memory the allocator keeps at the end of each of its heaps. Before any thread is started.
///
/// Left alone it learns from the largest block that was ever freed, 4 MiB here, to keep twice as much, for each thread and
/// for good: `release_heap` does not reach it.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT: i32 = 512 << 10;
        const OF_ITS_OWN: i32 = 1 << 20;
        #[expect(unsafe_code, reason = "a function of C")]
        // SAFETY: it only sets numbers of the allocator; see mallopt(3).
        let _ =
            unsafe { [nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, KEPT), nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, OF_ITS_OWN)] };
    }
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
    fn only_what_the_file_holds_is_released() {
        let mapping = |head: &str, written: &str, swapped: &str| {
            format!("{head}\nSize:   4 kB\nAnonymous:   {written} kB\nSwap:   {swapped} kB\nVmFlags: rd ex\n")
        };
        let found = |smaps: &str| unwritten(smaps, "/warren").collect::<Vec<_>>();
        let all = [
            mapping("00400000-00401000 r-xp 00001000 fe:00 77 /warren", "0", "0"),
            mapping("00500000-00502000 r--p 00002000 fe:00 77                         /warren", "0", "0"),
            mapping("00600000-00601000 r--p 00003000 fe:00 77 /warren", "4", "0"),
            mapping("00680000-00681000 r--p 00003000 fe:00 77 /warren", "0", "4"),
            mapping("00700000-00701000 rw-p 00003000 fe:00 77 /warren", "0", "0"),
            mapping("00800000-00801000 r-xp 00000000 fe:00 77 /lib/warren", "0", "0"),
            mapping("00900000-00901000 r-xp 00000000 00:00 0 [vdso]", "0", "0"),
            mapping("00a00000-00a01000 r-xp 00000000 00:00 0", "0", "0"),
        ];
        assert_eq!(found(&all.concat()), [(0x40_0000, 0x1000), (0x50_0000, 0x2000)]);
        assert_eq!(found(""), []);
    }

    #[test]
    fn the_program_goes_on() {
        let program = Program::find().expect("the kernel's list");
        assert!(!program.mappings.is_empty());
        program.release().expect("released");
        release_heap();
        program.release().expect("released again");
    }
}
