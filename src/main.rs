//! The `onnxzip` command.

fn main() -> std::process::ExitCode {
    forget_start();
    share_arenas();
    onnxzip::cli::main().into()
}

/// Gives back the pages of the program that only its start has read: relocations, and the code around the constructors
/// that are all over it, 4 MB of the 16 that simplifying a small model would take.
#[cfg(target_os = "linux")]
fn forget_start() {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        // Set by the linker: where the program begins and where its code ends.
        safe static __executable_start: u8;
        safe static etext: u8;
        fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
    }
    const DONTNEED: c_int = 4;
    const PAGE: usize = 4096;
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let len = (end as usize).saturating_sub(start as usize);
    // SAFETY: constants and code are mapped from the file, privately, and never written to: their pages come back as they
    // were. What is written to (`.data.rel.ro`, `.data`) lies behind `etext`. On failure nothing happens.
    unsafe { madvise(start.cast_mut().cast(), len / PAGE * PAGE, DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
fn forget_start() {}

/// Makes threads share what they freed: glibc gives a new arena to each of the first eight threads per core, and what a
/// thread frees in its own no other gets. As many as cores are enough: a sixth less memory, in the same time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn share_arenas() {
    use std::ffi::c_int;
    unsafe extern "C" {
        safe fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    const ARENA_MAX: c_int = -8;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    mallopt(ARENA_MAX, cores.try_into().unwrap_or(c_int::MAX));
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn share_arenas() {}
