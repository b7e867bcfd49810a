//! Where the parts of a Zarr kernel lie, how they are made, found and moved (`zarr.rs` has the picture).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::fault::{Fault, Result};
use super::grid::Grid;
use super::sink::{Paths, with_suffix};
use super::vfs::{How, Kind, Vfs, parent, sync, sync_dir, temporary, write_all};

/// Metadata file of a group or array.
pub const METADATA: &str = "zarr.json";
/// The array in the group.
pub const ARRAY: &str = "kernel";
/// Bytes of the checksum behind a chunk.
pub(super) const SUM: usize = 4;

/// Metadata of the array, canonical JSON.
pub fn array_json(grid: &Grid) -> String {
    let names = if grid.has_planes() { r#""output","row","column""# } else { r#""row","column""# };
    format!(
        concat!(
            r#"{{"attributes":{{}},"chunk_grid":{{"configuration":{{"chunk_shape":{chunk:?}}},"#,
            r#""name":"regular"}},"chunk_key_encoding":{{"configuration":{{"separator":"/"}},"#,
            r#""name":"default"}},"codecs":[{{"configuration":{{"endian":"little"}},"#,
            r#""name":"bytes"}},{{"name":"crc32c"}}],"data_type":"float{bits}","#,
            r#""dimension_names":[{names}],"fill_value":"NaN","node_type":"array","#,
            r#""shape":{shape:?},"storage_transformers":[],"zarr_format":3}}"#
        ),
        chunk = grid.chunk(),
        bits = grid.item() * 8,
        names = names,
        shape = grid.shape(),
    )
}

pub(super) fn chunk_key(grid: &Grid, plane: usize, (i, j): (usize, usize)) -> String {
    if grid.has_planes() { format!("c/{plane}/{i}/{j}") } else { format!("c/{i}/{j}") }
}

pub(super) fn chunk_path(root: &Path, grid: &Grid, plane: usize, place: (usize, usize)) -> PathBuf {
    root.join(ARRAY).join(chunk_key(grid, plane, place))
}

/// Refuses links: a directory of a store must be one.
pub(super) fn plain_dir<V: Vfs>(vfs: &V, path: &Path) -> Result<()> {
    match vfs.stat(path).map_err(|error| Fault::io("stat", path, error))? {
        Some(stat) if stat.kind != Kind::Dir => Err(Fault::UnsafePath(format!(
            "{} is not a plain directory; the entries of a store must lie inside it",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Which units have all their chunks at full length, and files that are no chunks.
pub(super) fn scan<V: Vfs>(vfs: &V, root: &Path, grid: &Grid) -> Result<(Vec<bool>, Vec<PathBuf>)> {
    let mut chunks = BTreeSet::new();
    let mut strays = Vec::new();
    let tops = grid.units().checked_sub(1).map_or(0, |last| grid.unit(last).i + 1);
    for plane in 0..if tops == 0 { 0 } else { grid.planes() } {
        for i in 0..tops {
            let dir = parent(&chunk_path(root, grid, plane, (i, 0))).to_owned();
            for name in names(vfs, &dir)? {
                match name.parse() {
                    Ok(j) if whole(vfs, &dir.join(&name), grid)? => {
                        chunks.insert((plane, i, j));
                    }
                    Ok(_) => {}
                    Err(_) => strays.push(dir.join(name)),
                }
            }
        }
    }
    let there = |place: (usize, usize)| {
        (0..grid.planes()).all(|plane| chunks.contains(&(plane, place.0, place.1)))
    };
    let done = (0..grid.units())
        .map(|index| {
            let unit = grid.unit(index);
            there((unit.i, unit.j)) && (!grid.mirrors() || there((unit.j, unit.i)))
        })
        .collect();
    Ok((done, strays))
}

fn names<V: Vfs>(vfs: &V, dir: &Path) -> Result<Vec<String>> {
    plain_dir(vfs, dir)?;
    match vfs.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|error| Fault::io("readdir", dir, error)),
    }
}

fn whole<V: Vfs>(vfs: &V, path: &Path, grid: &Grid) -> Result<bool> {
    let stat = vfs.stat(path).map_err(|error| Fault::io("stat", path, error))?;
    match stat {
        Some(stat) if stat.kind == Kind::File => Ok(stat.len == (grid.chunk_bytes() + SUM) as u64),
        Some(_) => Err(Fault::UnsafePath(format!(
            "{} is not a plain file; the entries of a store must lie inside it",
            path.display()
        ))),
        None => Ok(false),
    }
}

/// Makes group and array in one step. `false`: they were there.
pub(super) fn make_store<V: Vfs>(
    vfs: &V,
    root: &Path,
    grid: &Grid,
    manifest: &[u8],
) -> Result<bool> {
    plain_dir(vfs, root)?;
    let there = |path: &Path| matches!(vfs.stat(path), Ok(Some(_)));
    if there(root) {
        return Ok(false);
    }
    let fresh = temporary(root);
    let made = fill_store(vfs, &fresh, grid, manifest).and_then(|()| {
        match vfs.rename(&fresh, root) {
            Ok(()) => Ok(true),
            // Another share of the job was faster.
            Err(_) if there(root) => Ok(false),
            Err(error) => Err(Fault::io("rename", root, error)),
        }
    });
    if !matches!(made, Ok(true)) {
        let _ = vfs.remove_tree(&fresh);
    }
    let made = made?;
    sync_dir(vfs, parent(root))?;
    Ok(made)
}

fn fill_store<V: Vfs>(vfs: &V, root: &Path, grid: &Grid, manifest: &[u8]) -> Result<()> {
    let array = root.join(ARRAY);
    for dir in [root, &array, &array.join("c")] {
        vfs.make_dir(dir).map_err(|error| Fault::io("mkdir", dir, error))?;
    }
    let metadata = array_json(grid);
    for (dir, bytes) in [(root, manifest), (&array, metadata.as_bytes())] {
        let path = dir.join(METADATA);
        let file = vfs.open(&path, How::New).map_err(|error| Fault::io("open", &path, error))?;
        write_all(vfs, &file, &path, bytes, 0)?;
        sync(vfs, &file, &path)?;
    }
    [&array, root].into_iter().try_for_each(|dir| sync_dir(vfs, dir))
}

/// Gives the directory its final name. A directory cannot be renamed over another one, so an old
/// kernel changes places with the new one and is removed then.
pub(super) fn move_over<V: Vfs>(vfs: &V, paths: &Paths, taken: bool) -> Result<()> {
    let (from, to) = (&paths.partial, &paths.target);
    let failed = |error| Fault::io("rename", to, error);
    if taken {
        match vfs.exchange(from, to) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
                ) =>
            {
                let old = with_suffix(to, ".replaced");
                vfs.rename(to, &old).map_err(failed)?;
                vfs.rename(from, to).map_err(failed)?;
                vfs.rename(&old, from).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        sync_dir(vfs, parent(to))?;
        return remove_any(vfs, from);
    }
    vfs.rename(from, to).map_err(failed)?;
    sync_dir(vfs, parent(to))
}

fn remove_any<V: Vfs>(vfs: &V, path: &Path) -> Result<()> {
    let stat = vfs.stat(path).map_err(|error| Fault::io("stat", path, error))?;
    let removed = match stat {
        Some(stat) if stat.kind == Kind::Dir => vfs.remove_tree(path),
        Some(_) => vfs.remove(path),
        None => Ok(()),
    };
    removed.map_err(|error| Fault::io("unlink", path, error))
}
