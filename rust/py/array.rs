//! NumPy arrays into views: a leaf comes as `(kind, weight, ...)` with each array as `(bytes, dtype, swapped)`.
//!
//! `bytes` is a borrowed uint8 array with the five axes of a factor and a last axis over the bytes of an element: so one binding serves
//! every type, byte order, stride and alignment, and NumPy's own borrow check guards the memory.

use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::error::to_python;
use crate::error::Error;
use crate::kernel::{DType, View};
use crate::program::{Entry, Leaf, Use};

type Bytes<'py> = PyReadonlyArrayDyn<'py, u8>;

/// A borrowed array that keeps NumPy's borrow alive.
pub(super) struct Held<'py> {
    bytes: Bytes<'py>,
    dtype: DType,
    swapped: bool,
}

impl<'py> Held<'py> {
    pub(super) fn extract(item: &Bound<'py, PyAny>) -> PyResult<Self> {
        let (array, dtype, swapped): (Bound<'py, PyArrayDyn<u8>>, String, bool) = item.extract()?;
        let dtype = DType::from_name(&dtype).ok_or_else(|| {
            to_python(item.py(), &Error::Internal { what: format!("a dtype named {dtype}") })
        })?;
        Ok(Self { bytes: array.try_readonly()?, dtype, swapped })
    }

    pub(super) fn view(&self) -> Result<View<'_>, Error> {
        View::new(&self.bytes.as_array(), self.dtype, self.swapped)
    }
}

enum HeldUse<'py> {
    Outer(Held<'py>, Held<'py>, bool),
    Lookup(Held<'py>, Held<'py>),
}

enum HeldLeaf<'py> {
    Dense(Held<'py>),
    Uses(Vec<HeldUse<'py>>),
}

/// The leaves of one side of a kernel.
pub(super) struct HeldLeaves<'py> {
    leaves: Vec<(HeldLeaf<'py>, f64)>,
}

impl<'py> HeldLeaves<'py> {
    /// Borrow the arrays of a list of leaves.
    pub(super) fn extract(list: &Bound<'py, PyList>) -> PyResult<Self> {
        let leaves = list.iter().map(|leaf| extract_leaf(leaf.cast::<PyTuple>()?));
        Ok(Self { leaves: leaves.collect::<PyResult<_>>()? })
    }

    fn leaf(&self, index: usize) -> Result<Leaf<'_>, Error> {
        match &self.leaves[index].0 {
            HeldLeaf::Dense(jac) => Ok(Leaf::Dense(jac.view()?)),
            HeldLeaf::Uses(uses) => {
                Ok(Leaf::Uses(uses.iter().map(view_use).collect::<Result<_, _>>()?))
            }
        }
    }

    /// Both sides of every leaf.
    pub(super) fn entries<'a>(&'a self, cols: Option<&'a Self>) -> Result<Vec<Entry<'a>>, Error> {
        let entry = |(index, (_, weight)): (usize, &(HeldLeaf<'py>, f64))| {
            let rows = self.leaf(index)?;
            let cols = cols.map(|cols| cols.leaf(index)).transpose()?;
            Ok(Entry { rows, cols, weight: *weight })
        };
        self.leaves.iter().enumerate().map(entry).collect()
    }
}

fn view_use<'a>(one: &'a HeldUse<'_>) -> Result<Use<'a>, Error> {
    Ok(match one {
        HeldUse::Outer(acts, cots, transposed) => {
            Use::Outer { acts: acts.view()?, cots: cots.view()?, transposed: *transposed }
        }
        HeldUse::Lookup(ids, cots) => Use::Lookup { ids: ids.view()?, cots: cots.view()? },
    })
}

fn extract_leaf<'py>(leaf: &Bound<'py, PyTuple>) -> PyResult<(HeldLeaf<'py>, f64)> {
    let (kind, weight): (String, f64) =
        (leaf.get_item(0)?.extract()?, leaf.get_item(1)?.extract()?);
    let body = leaf.get_item(2)?;
    let held = if kind == "dense" {
        HeldLeaf::Dense(Held::extract(&body)?)
    } else {
        let uses = body.cast::<PyList>()?.iter().map(|one| extract_use(one.cast::<PyTuple>()?));
        HeldLeaf::Uses(uses.collect::<PyResult<_>>()?)
    };
    Ok((held, weight))
}

fn extract_use<'py>(one: &Bound<'py, PyTuple>) -> PyResult<HeldUse<'py>> {
    let kind: String = one.get_item(0)?.extract()?;
    let (left, right) = (Held::extract(&one.get_item(1)?)?, Held::extract(&one.get_item(2)?)?);
    Ok(if kind == "outer" {
        HeldUse::Outer(left, right, one.get_item(3)?.extract()?)
    } else {
        HeldUse::Lookup(left, right)
    })
}
