//! Memory that was freed goes back to the system, where a long step begins and ends, and between steps at once.
//!
//! Steps take turns: sums of moments, then factors, then two compiled models. glibc keeps what one of them freed in pieces that the next one
//! does not fit into, and gives back only what lies at the end. So between steps, where weights, factors and plans are made, large
//! pieces are mapped one by one. In a step a model runs over and over, whose values would cost a page fault for every 4 kB.

use crate::ir::store;

/// A step begins: pages that nobody uses, or that lie in files, go back, which takes milliseconds, and pieces below 32 MB come from the heap.
pub fn step_begins() {
    settle(32 << 20);
}

/// No step runs: such pages go back, too, and larger pieces are mapped one by one.
pub fn step_ended() {
    settle(1 << 19);
}

fn settle(mapped_from: i32) {
    store::release_all();
    system::settle(mapped_from);
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod system {
    use std::ffi::c_int;

    unsafe extern "C" {
        safe fn malloc_trim(pad: usize) -> c_int;
        safe fn mallopt(what: c_int, value: c_int) -> c_int;
    }
    const M_MMAP_THRESHOLD: c_int = -3;

    pub fn settle(mapped_from: c_int) {
        malloc_trim(0);
        mallopt(M_MMAP_THRESHOLD, mapped_from);
    }
}

/// Other allocators do so by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod system {
    pub fn settle(_: i32) {}
}
