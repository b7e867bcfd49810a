//! P31: no sequence of bytes makes a parser panic or accept what it would not write.
//!
//! The same properties are run for hours by `fuzz/`; here each seed of the corpora is read, and as
//! many changed ones as fit into a second or two.

use std::path::Path;

mod parsers {
    pub(crate) mod properties;
}

const CHANGES: u64 = 1200;

/// A random number; the multiplier is Knuth's.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn changed(seed: &[u8], state: &mut u64) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=next(state) % 4 {
        let at = next(state) as usize % (data.len() + 1);
        match next(state) % 5 {
            0 if at < data.len() => data[at] ^= 1 << (next(state) % 8),
            1 => data.truncate(at),
            2 => data.insert(at, next(state) as u8),
            3 if at < data.len() => drop(data.remove(at)),
            _ => {
                let tail = data[at..].to_vec();
                data.extend_from_slice(&tail[..tail.len().min(40)]);
            }
        }
    }
    data
}

#[test]
fn p31_no_bytes_make_a_parser_panic_or_accept_what_it_would_not_write() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, property) in parsers::properties::ALL {
        let mut seeds: Vec<_> = std::fs::read_dir(folder.join(name))
            .unwrap_or_else(|error| panic!("no corpus of {name}: {error}"))
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect();
        seeds.sort();
        seeds.push(Vec::new());
        let mut state = 1;
        for seed in &seeds {
            property(seed);
            for _ in 0..CHANGES / seeds.len() as u64 {
                property(&changed(seed, &mut state));
            }
        }
    }
}
