//! The list of finished tiles beside a `.npy`: append-only records of 32 bytes, each with its own
//! checksum.
//!
//! ```text
//! tile u64 | crc32c of the tile's bytes u32 | flags u32 | number of this record u64 | crc32c of
//! the 24 bytes before it u64                                             (all little-endian)
//! ```
//! Reading stops at the first record that does not check: a torn tail is what a kill leaves behind,
//! and is cut off. Records are only added under the file's lock, so a torn tail is never the half
//! of a record that somebody is still writing.

use std::path::{Path, PathBuf};

use super::fault::{Fault, Result};
use super::kill;
use super::vfs::{How, Vfs, read_exact, sync, write_all};

/// Bytes of one record.
pub const RECORD: usize = 32;
const BLOCK: usize = 1 << 16;

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The checksum of each finished tile.
    pub sums: Vec<Option<u32>>,
    /// Tiles that were recorded with two different checksums, with all of them, oldest first.
    pub disputed: Vec<(usize, Vec<u32>)>,
    /// Records that check.
    pub records: u64,
    /// Bytes after them.
    pub torn: u64,
}

/// An open log.
#[derive(Debug)]
pub struct Log<V: Vfs> {
    file: V::File,
    path: PathBuf,
}

/// One record.
pub fn encode(tile: usize, sum: u32, number: u64) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(&(tile as u64).to_le_bytes());
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    let check = u64::from(crc32c::crc32c(&bytes[..24]));
    bytes[24..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// Tile and checksum of a record, if it checks and is the one with that number.
pub fn decode(bytes: &[u8; RECORD], number: u64) -> Option<(u64, u32)> {
    let word =
        |at: usize| -> u64 { (0..8).fold(0, |w, i| w | u64::from(bytes[at + i]) << (8 * i)) };
    let sound = word(24) == u64::from(crc32c::crc32c(&bytes[..24]));
    let flags = word(8) >> 32;
    (sound && flags == 0 && word(16) == number).then(|| (word(0), (word(8) & 0xffff_ffff) as u32))
}

impl<V: Vfs> Log<V> {
    /// Opens a log; `How::Make` makes an empty one.
    ///
    /// # Errors
    /// The system's.
    pub fn open(vfs: &V, path: &Path, how: How) -> Result<Self> {
        let file = vfs.open(path, how).map_err(|error| Fault::io("open", path, error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Runs `work` while no other process adds to this log.
    ///
    /// # Errors
    /// The system's, and those of `work`.
    pub fn locked<T>(&self, vfs: &V, work: impl FnOnce() -> Result<T>) -> Result<T> {
        vfs.lock(&self.file).map_err(|error| Fault::io("flock", &self.path, error))?;
        let result = work();
        vfs.unlock(&self.file).map_err(|error| Fault::io("flock", &self.path, error))?;
        result
    }

    /// Reads the records for a kernel of `tiles` tiles.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] if a sound record names a tile that does not exist.
    pub fn read(&self, vfs: &V, tiles: usize) -> Result<Listing> {
        let length = self.length(vfs)?;
        let mut found = Listing { sums: vec![None; tiles], ..Listing::default() };
        let mut block = vec![0; BLOCK];
        'blocks: for start in (0..length).step_by(BLOCK) {
            let count = ((length - start) as usize).min(BLOCK);
            read_exact(vfs, &self.file, &self.path, &mut block[..count], start)?;
            for bytes in block[..count].as_chunks::<RECORD>().0 {
                let Some((tile, sum)) = decode(bytes, found.records) else { break 'blocks };
                found.enter(tile, sum).map_err(|tile| self.no_such_tile(tile, tiles))?;
            }
        }
        found.torn = length - found.records * RECORD as u64;
        Ok(found)
    }

    /// Cuts off whatever follows the last sound record.
    ///
    /// # Errors
    /// The system's.
    pub fn cut(&self, vfs: &V, found: &Listing) -> Result<()> {
        if found.torn == 0 {
            return Ok(());
        }
        vfs.truncate(&self.file, found.records * RECORD as u64)
            .map_err(|error| Fault::io("ftruncate", &self.path, error))?;
        sync(vfs, &self.file, &self.path)
    }

    /// Adds records and makes them survive a power cut.
    ///
    /// # Errors
    /// The system's.
    pub fn append(&self, vfs: &V, tiles: &[(usize, u32)]) -> Result<()> {
        self.locked(vfs, || {
            let number = self.length(vfs)? / RECORD as u64;
            let bytes: Vec<u8> = tiles
                .iter()
                .zip(number..)
                .flat_map(|(&(tile, sum), number)| encode(tile, sum, number))
                .collect();
            let start = number * RECORD as u64;
            let half = bytes.len().min(RECORD / 2 + 1);
            write_all(vfs, &self.file, &self.path, &bytes[..half], start)?;
            kill::point("mid_log_record");
            write_all(vfs, &self.file, &self.path, &bytes[half..], start + half as u64)?;
            kill::point("after_log");
            sync(vfs, &self.file, &self.path)?;
            kill::point("after_log_sync");
            Ok(())
        })
    }

    fn length(&self, vfs: &V) -> Result<u64> {
        let status = vfs.status(&self.file);
        Ok(status.map_err(|error| Fault::io("fstat", &self.path, error))?.0.len)
    }

    fn no_such_tile(&self, tile: u64, tiles: usize) -> Fault {
        Fault::Corrupt(format!("{}: tile {tile} of a kernel of {tiles} tiles", self.path.display()))
    }
}

impl Listing {
    fn enter(&mut self, tile: u64, sum: u32) -> std::result::Result<(), u64> {
        let index = usize::try_from(tile).map_err(|_| tile)?;
        let place = self.sums.get_mut(index).ok_or(tile)?;
        let before = place.replace(sum);
        self.records += 1;
        if let Some(before) = before.filter(|&before| before != sum) {
            match self.disputed.iter_mut().find(|(disputed, _)| *disputed == index) {
                Some((_, sums)) => sums.push(sum),
                None => self.disputed.push((index, vec![before, sum])),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_refused_at_another_place_or_with_a_changed_bit() {
        let bytes = encode(7, 0xdead_beef, 3);
        assert_eq!(decode(&bytes, 3), Some((7, 0xdead_beef)));
        assert_eq!(decode(&bytes, 4), None);
        for bit in 0..8 * RECORD {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&changed, 3), None, "bit {bit}");
        }
        assert_eq!(decode(&[0; RECORD], 0), None);
    }

    #[test]
    fn a_tile_beyond_the_kernel_is_named() {
        let mut found = Listing { sums: vec![None; 5], ..Listing::default() };
        assert_eq!(found.enter(4, 1), Ok(()));
        assert_eq!(found.enter(5, 1), Err(5));
        assert_eq!(found.enter(u64::MAX, 1), Err(u64::MAX));
    }
}
