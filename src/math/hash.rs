//! A hash of a number, for choices that are spread out and the same in every run, and the stream of numbers made of it:
//! SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
//!
//! A hash of bytes, to tell contents apart and find damage: MurmurHash3 for 64-bit machines, 128 bits (Appleby 2011, seed 0).
//! It is no defence against people who look for collisions on purpose.

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

/// 128 bits that tell contents apart.
pub type Digest = [u8; 16];

/// The hash of bytes that come piece by piece.
#[derive(Clone, Default)]
pub struct Hasher {
    state: [u64; 2],
    length: u64,
    /// Bytes that wait until there are sixteen.
    held: [u8; 16],
}

const FACTORS: [u64; 2] = [0x87c3_7b91_1142_53d5, 0x4cf5_ad43_2745_937f];

impl Hasher {
    /// Of no bytes yet.
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Adds bytes.
    pub fn add(&mut self, mut bytes: &[u8]) {
        let held = (self.length % 16) as usize;
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if held > 0 {
            let more = bytes.len().min(16 - held);
            self.held[held..held + more].copy_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            if held + more < 16 {
                return;
            }
            self.block(self.held);
        }
        let (blocks, rest) = bytes.as_chunks::<16>();
        blocks.iter().for_each(|b| self.block(*b));
        self.held[..rest.len()].copy_from_slice(rest);
    }

    /// Adds bytes and how many they are, so that what follows cannot be mistaken for a part of them.
    pub fn add_field(&mut self, bytes: &[u8]) {
        self.add(&(bytes.len() as u64).to_le_bytes());
        self.add(bytes);
    }

    fn block(&mut self, block: [u8; 16]) {
        let [k1, k2] = mixed(block);
        let [h1, h2] = &mut self.state;
        *h1 = (*h1 ^ k1).rotate_left(27).wrapping_add(*h2);
        *h1 = h1.wrapping_mul(5).wrapping_add(0x52dc_e729);
        *h2 = (*h2 ^ k2).rotate_left(31).wrapping_add(*h1);
        *h2 = h2.wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }

    /// The hash of all bytes.
    pub fn finish(mut self) -> Digest {
        let held = (self.length % 16) as usize;
        self.held[held..].fill(0);
        let [k1, k2] = mixed(self.held);
        let [mut h1, mut h2] = self.state;
        if held > 0 {
            (h1, h2) = (h1 ^ k1, h2 ^ k2);
        }
        (h1, h2) = (h1 ^ self.length, h2 ^ self.length);
        let both = |h1: &mut u64, h2: &mut u64| {
            *h1 = h1.wrapping_add(*h2);
            *h2 = h2.wrapping_add(*h1);
        };
        both(&mut h1, &mut h2);
        (h1, h2) = (spread(h1), spread(h2));
        both(&mut h1, &mut h2);
        let mut out = [0; 16];
        out[..8].copy_from_slice(&h1.to_le_bytes());
        out[8..].copy_from_slice(&h2.to_le_bytes());
        out
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.add(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn mixed(block: [u8; 16]) -> [u64; 2] {
    let number = |i: usize| {
        let bytes: [u8; 8] = std::array::from_fn(|k| block[8 * i + k]);
        u64::from_le_bytes(bytes)
    };
    let k1 = number(0)
        .wrapping_mul(FACTORS[0])
        .rotate_left(31)
        .wrapping_mul(FACTORS[1]);
    let k2 = number(1)
        .wrapping_mul(FACTORS[1])
        .rotate_left(33)
        .wrapping_mul(FACTORS[0]);
    [k1, k2]
}

fn spread(x: u64) -> u64 {
    let x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> [u64; 2] {
        let mut h = Hasher::new();
        h.add(bytes);
        let d = h.finish();
        [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|i| d[at + i])))
    }

    #[test]
    fn hashes_of_bytes_are_those_of_murmur3() {
        assert_eq!(of(b""), [0, 0]);
        assert_eq!(
            of(b"The quick brown fox jumps over the lazy dog"),
            [0xe34b_bc7b_bc07_1b6c, 0x7a43_3ca9_c49a_9347]
        );
        assert_eq!(of(b"hello"), [0xcbd8_a7b3_41bd_9b02, 0x5b1e_906a_48ae_1d19]);
    }

    #[test]
    fn pieces_make_no_difference() {
        let bytes: Vec<u8> = (0..100u8).collect();
        for cut in [0, 1, 15, 16, 17, 40, 99] {
            let mut h = Hasher::new();
            h.add(&bytes[..cut]);
            h.add(&bytes[cut..cut + (100 - cut) / 2]);
            h.add(&bytes[cut + (100 - cut) / 2..]);
            let mut whole = Hasher::new();
            whole.add(&bytes);
            assert_eq!(h.finish(), whole.finish());
        }
    }
}
