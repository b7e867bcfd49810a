//! What must hold for every sequence of bytes, shared by `tests/parsers.rs` and the fuzz targets.
//!
//! A parser may refuse; it may not panic, hang, or accept what it would not write.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use entk::store::lock::Lock;
use entk::store::log::{Log, RECORD};
use entk::store::power::Power;
use entk::store::vfs::{Disk, How, Vfs, write_all};
use entk::store::zarr_layout::array_json;
use entk::store::zarr_read::ZarrReader;
use entk::store::{Fault, Grid, Reader, Triangle, header, safetensors};

/// A check of what a parser makes of some bytes; panics if it does not hold.
pub(crate) type Property = fn(&[u8]);

/// Every property, by the name of its target and of its corpus.
pub(crate) const ALL: [(&str, Property); 6] = [
    ("npy_header", npy_header),
    ("safetensors_header", safetensors_header),
    ("tile_log", tile_log),
    ("zarr_store", zarr_store),
    ("lock_file", lock_file),
    ("grid", grid),
];

/// A header that is read has the size it promises, and is written and read back the same.
pub(crate) fn npy_header(data: &[u8]) {
    let Ok(span) = header::npy_span(data) else {
        assert!(header::read_npy(data).is_err());
        return;
    };
    assert!(span <= header::LIMIT + 12);
    let Ok(found) = header::read_npy(data) else { return };
    assert_eq!(found.start, span);
    let entries = found.shape.iter().try_fold(1u64, |product, &axis| product.checked_mul(axis));
    assert!(found.shape.contains(&0) || entries.is_some_and(|entries| entries <= found.bytes));
    if found.descr == "<f4" && !found.fortran && entries.is_some() {
        let shape: Vec<usize> = found.shape.iter().map(|&axis| axis as usize).collect();
        let again = header::read_npy(&header::write_npy(&shape, 4)).unwrap();
        assert_eq!((again.shape, again.bytes), (found.shape, found.bytes));
    }
}

/// Tensors that are read lie inside the file, one after another, without gap or overlap.
pub(crate) fn safetensors_header(data: &[u8]) {
    let length = data.len() as u64;
    // As it is in a file, and as if a file of the right length followed.
    let Ok(span) = safetensors::span(data, length) else { return };
    let text = &data[8..8 + span as usize];
    let _ = safetensors::read(text, length);
    let ends = text.rsplit(|&byte| byte == b',').map(digits);
    for rest in ends.take(4) {
        let whole = 8 + span + rest;
        let Ok(found) = safetensors::read(text, whole) else { continue };
        let mut spans: Vec<_> = found.values().map(|one| (one.start, one.bytes)).collect();
        spans.sort_unstable();
        let end = spans.iter().fold(8 + span, |at, &(start, bytes)| {
            assert_eq!(at, start);
            at + bytes
        });
        assert_eq!(end, whole);
    }
}

fn digits(text: &[u8]) -> u64 {
    let digits = text.iter().filter(|byte| byte.is_ascii_digit()).take(12);
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// Whatever follows the last sound record is cut, and what is added then is read.
pub(crate) fn tile_log(data: &[u8]) {
    let disk = Power::new(u64::MAX);
    let path = Path::new("tiles.log");
    put(&disk, path, data);
    let log = Log::open(&disk, path, How::Edit).unwrap();
    let tiles = 64;
    let Ok(found) = log.read(&disk, tiles) else { return };
    assert_eq!(found.records * RECORD as u64 + found.torn, data.len() as u64);
    assert!(found.sums.iter().flatten().count() as u64 <= found.records);
    log.cut(&disk, &found).unwrap();
    log.append(&disk, &[(5, 0x1234_5678)]).unwrap();
    let again = log.read(&disk, tiles).unwrap();
    assert_eq!((again.records, again.torn), (found.records + 1, 0));
    assert_eq!(again.sums[5], Some(0x1234_5678));
}

/// Metadata are those of the grid or refused; a chunk has its checksum behind it or is refused.
pub(crate) fn zarr_store(data: &[u8]) {
    let grid = Grid::new(&[3, 3], 2, 4, true, Triangle::Lower).unwrap();
    let want = array_json(&grid);
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let (metadata, chunk) = if first & 1 == 0 { (rest, data) } else { (want.as_bytes(), rest) };
    let disk = Power::new(u64::MAX);
    for dir in ["K", "K/kernel", "K/kernel/c", "K/kernel/c/0", "K/kernel/c/1"] {
        disk.make_dir(Path::new(dir)).unwrap();
    }
    put(&disk, Path::new("K/kernel/zarr.json"), metadata);
    put(&disk, Path::new("K/kernel/c/1/0"), chunk);
    let opened = ZarrReader::open(disk, Path::new("K"), grid);
    assert_eq!(opened.is_ok(), metadata == want.as_bytes());
    let Ok(store) = opened else { return };
    let sound = chunk.len() == grid.chunk_bytes() + 4
        && crc32c::crc32c(&chunk[..grid.chunk_bytes()]).to_le_bytes()
            == chunk[grid.chunk_bytes()..];
    assert_eq!(store.check(1, true).is_ok(), sound);
    let listed = store.done().unwrap();
    assert_eq!(listed[1], chunk.len() == grid.chunk_bytes() + 4);
}

/// What stands in a lock file changes who is named, and nothing else; the name is printable.
pub(crate) fn lock_file(data: &[u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 64;
    let name = format!("entk-lock-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let held = Lock::take(&Disk, &path, Path::new("K.npy"), false).unwrap();
    let file = Disk.open(&path, How::Edit).unwrap();
    Disk.truncate(&file, 0).unwrap();
    write_all(&Disk, &file, &path, data, 0).unwrap();
    let fault = Lock::take(&Disk, &path, Path::new("K.npy"), true).unwrap_err();
    assert!(matches!(&fault, Fault::Locked { .. }));
    let text = fault.to_string();
    assert!(text.len() < 1500 && !text.chars().any(char::is_control), "{text:?}");
    held.release(&Disk);
    assert!(!path.exists());
}

/// A manifest's numbers give a grid whose units lie inside it, or are refused.
pub(crate) fn grid(data: &[u8]) {
    let word = |k: usize| {
        let bytes = data.get(8 * k..8 * k + 8).unwrap_or(&[3, 0, 0, 0, 0, 0, 0, 0]);
        let number = u64::from_le_bytes(bytes.try_into().unwrap());
        // Small, middling and huge numbers, by the highest byte.
        (number >> [48, 32, 16, 1][bytes[7] as usize % 4]) as usize
    };
    let flags = data.first().copied().unwrap_or(0);
    let shape =
        if flags & 1 == 0 { vec![word(0), word(1)] } else { vec![word(2), word(0), word(0)] };
    let symmetric = flags & 2 != 0 && shape[shape.len() - 1] == shape[shape.len() - 2];
    let triangle = if flags & 4 != 0 && symmetric { Triangle::Lower } else { Triangle::Full };
    let Ok(grid) = Grid::new(&shape, word(3).max(1), 4, symmetric, triangle) else { return };
    assert_eq!(grid.shape(), shape);
    let units = grid.units();
    for index in [0, units / 2, units.wrapping_sub(1)].into_iter().filter(|&k| k < units) {
        let unit = grid.unit(index);
        assert!(!unit.rows.is_empty() && unit.rows.end <= grid.rows());
        assert!(!unit.cols.is_empty() && unit.cols.end <= grid.cols());
        assert!(grid.unit_bytes(&unit) as u64 <= grid.bytes());
        assert!(grid.chunks_of(&unit) >= 1);
    }
}

fn put(disk: &Power, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, How::Make).unwrap();
    write_all(disk, &file, path, bytes, 0).unwrap();
}
