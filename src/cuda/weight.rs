//! Frozen tensors on the device: matrices as bf16 with padded rows, vectors (norm weights) as f32 of the bf16 values.
//!
//! Rows are padded and narrowed on the host in pieces, so that a matrix of any size passes through a few megabytes. A tensor that two
//! names share (a tied head) is uploaded once.

use super::buffer::{Buf, Element, stride};
use super::device::Cuda;
use super::error::or_raise;
use crate::ops;
use crate::weights::{Dtype, TensorView};
use half::bf16;
use std::sync::{Arc, OnceLock};

/// Bytes that are padded on the host at once.
const PIECE: usize = 16 << 20;

/// A frozen tensor: a matrix `[out, in]`, or a vector `[n]` as one row.
#[derive(Clone)]
pub struct Weight(Arc<Tensor>);

pub(super) struct Tensor {
    view: TensorView,
    buf: Buf,
    /// The values as stored, where the checkpoint has them in f32: what the answer head multiplies with.
    stored: OnceLock<Buf>,
}

impl Weight {
    /// Uploads a tensor.
    ///
    /// # Errors
    /// [`ops::Error::Dtype`] for anything but bf16 and f32; [`ops::Error::Cuda`] without memory for it.
    pub(super) fn upload(cuda: &Cuda, view: &TensorView) -> Result<Self, ops::Error> {
        if !matches!(view.dtype, Dtype::Bf16 | Dtype::F32) {
            let found = format!("{:?}", view.dtype).to_uppercase();
            return Err(ops::Error::Dtype { tensor: view.name.to_string(), found });
        }
        let element = if view.shape.len() < 2 { Element::F32 } else { Element::Bf16 };
        let buf = super::caught(|| send(cuda, view, element, true))?;
        Ok(Self(Arc::new(Tensor { view: view.clone(), buf, stored: OnceLock::new() })))
    }

    pub(super) fn shared(tensor: Arc<Tensor>) -> Self {
        Self(tensor)
    }

    pub(super) fn tensor(&self) -> &Arc<Tensor> {
        &self.0
    }

    /// Rows of the matrix; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.0.buf.rows()
    }

    /// Columns of the matrix; the length of a vector.
    pub fn cols(&self) -> usize {
        self.0.buf.cols()
    }

    /// A matrix in bf16, a vector in f32, both rounded to bf16.
    pub fn buf(&self) -> &Buf {
        &self.0.buf
    }

    /// A matrix in the dtype that the checkpoint stores it in; an f32 one is uploaded when first asked for.
    pub fn stored(&self, cuda: &Cuda) -> &Buf {
        match self.0.view.dtype {
            Dtype::F32 if self.0.buf.element() == Element::Bf16 => {
                self.0.stored.get_or_init(|| send(cuda, &self.0.view, Element::F32, false))
            }
            _ => &self.0.buf,
        }
    }
}

/// A tensor's rows as padded rows on the device; `rounds` says whether f32 values become those of bf16.
fn send(cuda: &Cuda, view: &TensorView, element: Element, rounds: bool) -> Buf {
    let (rows, cols) = extent(view);
    let buf = cuda.buffer(rows, cols, element);
    let (row, padded, size) = (cols * view.dtype.size(), stride(cols) * element.size(), element.size());
    let at_once = (PIECE / padded.max(1)).max(1);
    let mut piece = Vec::new();
    for (index, source) in view.bytes().chunks(at_once * row.max(1)).enumerate() {
        piece.clear();
        for values in source.chunks_exact(row.max(1)) {
            let end = piece.len() + padded;
            append(&mut piece, values, view.dtype, element, rounds);
            piece.resize(end, 0);
        }
        or_raise(cuda.write(buf.address() + (index * at_once * stride(cols) * size) as u64, &piece));
    }
    buf
}

fn append(piece: &mut Vec<u8>, values: &[u8], stored: Dtype, element: Element, rounds: bool) {
    match (stored, element) {
        (Dtype::Bf16, Element::Bf16) => piece.extend_from_slice(values),
        (Dtype::Bf16, Element::F32) => {
            for b in values.chunks_exact(2) {
                piece.extend(bf16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes());
            }
        }
        (_, element) => {
            for b in values.chunks_exact(4) {
                let value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                match element {
                    Element::Bf16 => piece.extend(bf16::from_f32(value).to_le_bytes()),
                    Element::F32 if rounds => piece.extend(bf16::from_f32(value).to_f32().to_le_bytes()),
                    Element::F32 => piece.extend_from_slice(b),
                }
            }
        }
    }
}

/// Rows and columns; a vector is one row.
fn extent(view: &TensorView) -> (usize, usize) {
    let rows = if view.shape.len() < 2 { 1 } else { view.shape[0] };
    (rows, view.elements() / rows.max(1))
}
