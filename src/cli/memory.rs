//! Memory that was freed goes back to the system where a long step begins and ends.
//!
//! Steps take turns: sums of moments, then factors, then two compiled models. glibc keeps what one of them freed in pieces that the next one
//! does not fit into, and gives back only what lies at the end.

/// Gives back all pages that nobody uses; takes milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    use std::ffi::c_int;
    unsafe extern "C" {
        safe fn malloc_trim(pad: usize) -> c_int;
    }
    malloc_trim(0);
}

/// Other allocators do so by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
