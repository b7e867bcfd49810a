//! The files of a `.npy` store: made, checked, given their names.

use std::path::Path;

use super::fault::{Fault, Result};
use super::grid::Grid;
use super::header;
use super::sink::{Paths, sidecar};
use super::vfs::{How, Kind, Vfs, parent, read_exact, sync, sync_dir, temporary, write_all};

/// Manifest of a `.npy`, in the directory beside it.
pub const MANIFEST: &str = "manifest.json";
/// Log of a `.npy`, in the directory beside it.
pub const LOG: &str = "tiles.log";
/// Bytes of a tile that are read or written at a time: they stay in a cache for their checksum.
pub(super) const STEP: usize = 1 << 18;

/// Finishes what a stop between the two last renames left undone. Harmless at any other time.
///
/// # Errors
/// The system's.
pub fn tidy<V: Vfs>(vfs: &V, paths: &Paths) -> Result<()> {
    let (from, to) = (sidecar(&paths.partial), sidecar(&paths.target));
    let there = |path: &Path| vfs.stat(path).map_err(|error| Fault::io("stat", path, error));
    if there(&from)?.is_none() || there(&paths.partial)?.is_some() {
        return Ok(());
    }
    if there(&to)?.is_some() {
        // The directory of the kernel that was just replaced.
        vfs.remove_tree(&to).map_err(|error| Fault::io("unlink", &to, error))?;
    }
    vfs.rename(&from, &to).map_err(|error| Fault::io("rename", &to, error))?;
    sync_dir(vfs, parent(&to))
}

pub(super) fn move_over<V: Vfs>(vfs: &V, paths: &Paths) -> Result<()> {
    vfs.rename(&paths.partial, &paths.target)
        .map_err(|error| Fault::io("rename", &paths.target, error))?;
    sync_dir(vfs, parent(&paths.target))
}

/// Makes the directory of manifest and log in one step. `false`: it was there.
pub(super) fn make_side<V: Vfs>(vfs: &V, side: &Path, manifest: &[u8]) -> Result<bool> {
    match vfs.stat(side).map_err(|error| Fault::io("stat", side, error))? {
        Some(stat) if stat.kind == Kind::Dir => return Ok(false),
        Some(_) => {
            let text = format!("{} is not a plain directory", side.display());
            return Err(Fault::UnsafePath(text));
        }
        None => {}
    }
    let fresh = temporary(side);
    vfs.make_dir(&fresh).map_err(|error| Fault::io("mkdir", &fresh, error))?;
    let made = fill_side(vfs, &fresh, manifest).and_then(|()| {
        match vfs.rename(&fresh, side) {
            Ok(()) => Ok(true),
            // Another share of the job was faster.
            Err(_) if matches!(vfs.stat(side), Ok(Some(_))) => Ok(false),
            Err(error) => Err(Fault::io("rename", side, error)),
        }
    });
    if !matches!(made, Ok(true)) {
        let _ = vfs.remove_tree(&fresh);
    }
    sync_dir(vfs, parent(side))?;
    made
}

fn fill_side<V: Vfs>(vfs: &V, side: &Path, manifest: &[u8]) -> Result<()> {
    for (name, bytes) in [(MANIFEST, manifest), (LOG, &[][..])] {
        let path = side.join(name);
        let file = vfs.open(&path, How::New).map_err(|error| Fault::io("open", &path, error))?;
        write_all(vfs, &file, &path, bytes, 0)?;
        sync(vfs, &file, &path)?;
    }
    sync_dir(vfs, side)
}

/// Opens the matrix; if no tile is recorded yet, writes its header and reserves its bytes.
pub(super) fn open_data<V: Vfs>(
    vfs: &V,
    path: &Path,
    grid: &Grid,
    new: bool,
) -> Result<(V::File, u64, bool)> {
    let how = if new { How::Make } else { How::Edit };
    let data = vfs.open(path, how).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Fault::Incomplete(format!("{} is missing, but its log lists tiles", path.display()))
        }
        _ => Fault::io("open", path, error),
    })?;
    if !new {
        let start = check_header(vfs, &data, path, grid)?;
        return Ok((data, start, true));
    }
    let text = header::write_npy(&grid.shape(), grid.item());
    let length = text.len() as u64 + grid.bytes();
    let reserved =
        vfs.allocate(&data, length).map_err(|error| Fault::at("fallocate", path, None, error))?;
    write_all(vfs, &data, path, &text, 0)?;
    sync(vfs, &data, path)?;
    sync_dir(vfs, parent(path))?;
    let start = check_header(vfs, &data, path, grid)?;
    Ok((data, start, reserved))
}

/// Compares header and length with the grid; returns where the data start.
pub(super) fn check_header<V: Vfs>(
    vfs: &V,
    data: &V::File,
    path: &Path,
    grid: &Grid,
) -> Result<u64> {
    let want = header::write_npy(&grid.shape(), grid.item());
    let status = vfs.status(data).map_err(|error| Fault::io("fstat", path, error))?;
    let (length, promised) = (status.0.len, want.len() as u64 + grid.bytes());
    if length != promised {
        return Err(header::wrong_length(path, length, promised));
    }
    let mut got = vec![0; want.len()];
    read_exact(vfs, data, path, &mut got, 0)?;
    if got != want {
        let text = format!("{}: the header is not that of its manifest", path.display());
        return Err(Fault::Corrupt(text));
    }
    Ok(want.len() as u64)
}

pub(super) fn place(grid: &Grid, start: u64, plane: usize, row: usize, col: usize) -> u64 {
    start + (((plane * grid.rows() + row) * grid.cols() + col) * grid.item()) as u64
}

/// The checksum of a unit as it is on the disk.
pub(super) fn unit_sum<V: Vfs>(
    vfs: &V,
    data: &V::File,
    path: &Path,
    start: u64,
    grid: &Grid,
    index: usize,
) -> Result<u32> {
    let unit = grid.unit(index);
    let mut bytes = vec![0; unit.cols.len() * grid.item()];
    let mut sum = 0;
    for plane in 0..grid.planes() {
        for row in unit.rows.clone() {
            let at = place(grid, start, plane, row, unit.cols.start);
            read_exact(vfs, data, path, &mut bytes, at)?;
            sum = crc32c::crc32c_append(sum, &bytes);
        }
    }
    Ok(sum)
}
