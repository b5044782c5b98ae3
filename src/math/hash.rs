//! A hash of a number, for choices that are spread out and the same in every run, and the stream of numbers made of it.
//!
//! SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").

/// The golden ratio, odd: consecutive multiples are spread over all 64 bits.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a number.
pub fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(STEP);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The next number of a stream.
pub fn next(state: &mut u64) -> u64 {
    let number = splitmix(*state);
    *state = state.wrapping_add(STEP);
    number
}
