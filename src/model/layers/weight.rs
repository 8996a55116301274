//! A weight matrix as a layer uses it: a dense tensor, or rows in quantized form that are decoded a panel at a time.
//!
//! A weight may also be trained as it will be rounded ([`Rounded`]): quantization-aware training.
//!
//! A panel is a few rows of a frozen matrix in f32. One is alive a thread, and every product refills it: the memory of a
//! quantized base is its blocks and one panel, however large the matrix.

use super::fused;
use super::host::Host;
use super::mat::{By, Mat, Onto, matmul, product};
use candle_core::{Device, Result, Tensor, TensorId, bail};
use edgeft_quantize::codec;
use edgeft_runtime::format::{GgmlType, block};
use parking_lot::Mutex;
use rayon::prelude::*;
use std::cell::RefCell;
use std::sync::Arc;

/// A frozen matrix in some quantized form. Rows are outputs, in the order of the Hugging Face checkpoint.
pub trait Rows: Send + Sync {
    /// (out, in).
    fn dims(&self) -> (usize, usize);
    /// Writes row `i`, `in` values.
    fn decode(&self, i: usize, out: &mut [f32]);
}

/// (out, in).
#[derive(Clone)]
pub enum Weight {
    /// As it is, frozen or trained.
    Dense(Tensor),
    /// Quantized and frozen: decoded where it is used.
    Frozen(Arc<dyn Rows>),
    /// Trained through the rounding of a file type.
    Rounded(Rounded),
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor)
    }
}

/// Values in a panel: 16 MiB, large enough for its GEMM to run at full speed, small beside any base.
const PANEL: usize = 4 << 20;

impl Weight {
    /// (out, in).
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(w) => w.dims2(),
            Self::Frozen(rows) => Ok(rows.dims()),
            Self::Rounded(w) => w.master.dims2(),
        }
    }

    /// Where rows of it are made.
    pub fn device(&self) -> &Device {
        match self {
            Self::Dense(w) => w.device(),
            Self::Rounded(w) => w.master.device(),
            Self::Frozen(_) => &Device::Cpu,
        }
    }

    /// x Wᵀ. x: (N, in) → (N, out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let rows = match self {
            Self::Dense(w) => return matmul(x, &w.t()?),
            Self::Rounded(w) => return matmul(x, &w.seen()?.t()?),
            Self::Frozen(rows) => rows,
        };
        let ((n, input), (out, width)) = (x.dims2()?, rows.dims());
        if input != width {
            bail!("({n}, {input}) by ({out}, {width})ᵀ: the shapes do not fit");
        }
        let mut y = vec![0.0; n * out];
        by_panels(rows.as_ref(), &Host::strided(x)?, &mut y);
        Tensor::from_vec(y, (n, out), x.device())
    }

    /// x Wᵀ in the place of y: (N, out).
    pub fn forward_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let ((n, input), (out, width)) = (x.dims2()?, self.dims()?);
        if (input, y.dims2()?) != (width, (n, out)) {
            bail!("({n}, {input}) by ({out}, {width})ᵀ in the place of {:?}: the shapes do not fit", y.shape());
        }
        let hx = Host::strided(x)?;
        let dense = match self {
            Self::Frozen(rows) => return fused::change(y, |y| by_panels(rows.as_ref(), &hx, y)),
            Self::Dense(w) => w,
            Self::Rounded(w) => &w.seen()?,
        };
        let w = Host::strided(dense)?;
        fused::change(y, |y| product(y, out, hx.mat(), w.mat().t(), Onto::Nothing, By::All))
    }

    /// dy W: the gradient of x. dy: (N, out) → (N, in).
    pub fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        let rows = match self {
            Self::Dense(w) => return matmul(dy, w),
            Self::Rounded(w) => return matmul(dy, &w.seen()?),
            Self::Frozen(rows) => rows,
        };
        let ((n, given), (out, width)) = (dy.dims2()?, rows.dims());
        if given != out {
            bail!("({n}, {given}) by ({out}, {width}): the shapes do not fit");
        }
        let mut dx = vec![0.0; n * width];
        let hdy = Host::strided(dy)?;
        panels(rows.as_ref(), |first, panel| {
            product(&mut dx, width, hdy.mat().columns(first, panel.dims().0), panel, Onto::Sum, By::All);
        });
        Tensor::from_vec(dx, (n, width), dy.device())
    }

    /// Rows `ids`: (n, in).
    pub fn rows(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        let rows = match self {
            Self::Dense(w) => return w.index_select(&Tensor::new(ids, device)?, 0),
            Self::Rounded(w) => return w.seen()?.index_select(&Tensor::new(ids, device)?, 0),
            Self::Frozen(rows) => rows,
        };
        let (n, width) = rows.dims();
        if let Some(id) = ids.iter().find(|id| **id as usize >= n) {
            bail!("row {id} of a matrix with {n} rows");
        }
        let mut out = vec![0.0; ids.len() * width];
        out.par_chunks_mut(width).zip(ids).for_each(|(out, id)| rows.decode(*id as usize, out));
        Tensor::from_vec(out, (ids.len(), width), device)
    }

    /// The whole matrix in f32, as products see it.
    pub fn dense(&self) -> Result<Tensor> {
        match self {
            Self::Dense(w) => Ok(w.clone()),
            Self::Rounded(w) => w.seen(),
            Self::Frozen(rows) => {
                let (n, _) = rows.dims();
                self.rows(&(0..n as u32).collect::<Vec<_>>(), &Device::Cpu)
            }
        }
    }

    /// What an optimizer may change; nothing of a quantized weight.
    pub fn trainable(&mut self) -> Option<&mut Tensor> {
        match self {
            Self::Dense(w) => Some(w),
            Self::Rounded(w) => Some(&mut w.master),
            Self::Frozen(_) => None,
        }
    }

    /// From now on products see a dense weight as a file of type `ty` would hold it.
    pub fn round(&mut self, ty: GgmlType) {
        if let Self::Dense(master) = self {
            *self = Self::Rounded(Rounded { master: master.clone(), ty, seen: Arc::default() });
        }
    }
}

/// A trained weight that products see rounded. The rounding is that of the file, block for block; its slope is taken to be 1
/// (straight through: Bengio et al., arXiv:1308.3432), so the gradient at what was seen moves the weight behind it.
#[derive(Clone)]
pub struct Rounded {
    /// (out, in), in f32: what the optimizer moves and the run keeps.
    master: Tensor,
    ty: GgmlType,
    /// The rounded weight, and which master it was made from; tied layers share it.
    seen: Arc<Mutex<Option<(TensorId, Tensor)>>>,
}

impl Rounded {
    fn seen(&self) -> Result<Tensor> {
        if let Some((of, rounded)) = &*self.seen.lock()
            && *of == self.master.id()
        {
            return Ok(rounded.clone());
        }
        // Not under the lock: a thread of the pool that waits for a part of it may take up other work that asks for the same.
        let rounded = round_trip(&self.master, self.ty)?;
        *self.seen.lock() = Some((self.master.id(), rounded.clone()));
        Ok(rounded)
    }
}

/// Every row to blocks and back.
fn round_trip(w: &Tensor, ty: GgmlType) -> Result<Tensor> {
    let w = w.contiguous()?;
    let width = w.dim(1)?;
    let host = Host::new(&w)?;
    let mut out = vec![0.0; w.elem_count()];
    out.par_chunks_mut(width).zip(host.slice().par_chunks(width)).try_for_each(|(out, row)| {
        let mut blocks = Vec::new();
        codec::encode(ty, row, &mut blocks)
            .map_err(|e| candle_core::Error::Msg(format!("a weight cannot be rounded: {e}")))?;
        block::decode(ty, &blocks, out);
        Ok::<_, candle_core::Error>(())
    })?;
    Tensor::from_vec(out, w.shape(), w.device())
}

thread_local! {
    /// The buffer of panels; taken while it is in use.
    static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// y = x Wᵀ, row by row.
fn by_panels(rows: &dyn Rows, x: &Host, y: &mut [f32]) {
    let out = rows.dims().0;
    panels(rows, |first, panel| {
        if x.mat().dims().0 > 0 {
            product(&mut y[first..], out, x.mat(), panel.t(), Onto::Nothing, By::All);
        }
    });
}

/// Calls `f` with the number of its first row and the values of each panel, (rows, in), in order.
fn panels(rows: &dyn Rows, mut f: impl FnMut(usize, Mat)) {
    let (n, width) = rows.dims();
    let most = (PANEL / width.max(1)).clamp(1, n.max(1));
    let mut buffer = BUFFER.take();
    if buffer.len() < most * width {
        buffer = vec![0.0; PANEL.max(width)];
    }
    for first in (0..n).step_by(most) {
        let len = most.min(n - first);
        let panel = &mut buffer[..len * width];
        panel.par_chunks_mut(width).enumerate().for_each(|(i, out)| rows.decode(first + i, out));
        f(first, Mat::new(panel, (len, width), width));
    }
    BUFFER.set(buffer);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that say where they are.
    struct Numbered(usize, usize);

    impl Rows for Numbered {
        fn dims(&self) -> (usize, usize) {
            (self.0, self.1)
        }
        fn decode(&self, i: usize, out: &mut [f32]) {
            out.iter_mut().enumerate().for_each(|(j, v)| *v = ((i * 31 + j * 17) % 101) as f32 / 50.0 - 1.0);
        }
    }

    fn both(n: usize, width: usize) -> (Weight, Weight) {
        let frozen = Weight::Frozen(Arc::new(Numbered(n, width)));
        let dense = Weight::Dense(frozen.dense().unwrap());
        (frozen, dense)
    }

    fn differ(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    fn noise(n: usize, width: usize) -> Tensor {
        let values: Vec<f32> = (0..n * width).map(|i| ((i * 7919) % 257) as f32 / 128.0 - 1.0).collect();
        Tensor::from_vec(values, (n, width), &Device::Cpu).unwrap()
    }

    /// Matrices of one panel, of several, and of several with a rest: (PANEL / 1024) = 4096 rows each.
    #[test]
    fn panels_give_the_products_of_the_whole_matrix() {
        for (n, width) in [(24, 40), (8192, 1024), (9001, 1024)] {
            let (frozen, dense) = both(n, width);
            let x = noise(3, width);
            assert!(differ(&frozen.forward(&x).unwrap(), &dense.forward(&x).unwrap()) < 1e-3, "{n} forward");
            let into = noise(3, n);
            for weight in [&frozen, &dense] {
                weight.forward_into(&x, &into).unwrap();
                assert_eq!(differ(&into, &weight.forward(&x).unwrap()), 0.0, "{n} in place");
            }
            let dy = noise(3, n);
            assert!(differ(&frozen.backward(&dy).unwrap(), &dense.backward(&dy).unwrap()) < 1e-2, "{n} backward");
            let ids = [0, n as u32 - 1, 5, 5];
            let (a, b) = (frozen.rows(&ids, &Device::Cpu).unwrap(), dense.rows(&ids, &Device::Cpu).unwrap());
            assert_eq!(differ(&a, &b), 0.0);
        }
    }

    #[test]
    fn a_rounded_weight_is_seen_as_the_file_holds_it_and_follows_its_master() {
        let master = noise(16, 64);
        let mut weight = Weight::from(master.clone());
        weight.round(GgmlType::Q4_0);
        let tied = weight.clone();
        let (x, dy) = (noise(3, 64), noise(3, 16));
        let file = round_trip(&master, GgmlType::Q4_0).unwrap();
        assert!(differ(&file, &master) > 1e-3);
        assert_eq!(differ(&weight.dense().unwrap(), &file), 0.0);
        assert_eq!(differ(&weight.forward(&x).unwrap(), &x.matmul(&file.t().unwrap()).unwrap()), 0.0);
        assert_eq!(differ(&weight.backward(&dy).unwrap(), &dy.matmul(&file).unwrap()), 0.0);
        assert_eq!(differ(&tied.rows(&[2], &Device::Cpu).unwrap(), &file.narrow(0, 2, 1).unwrap()), 0.0);
        let moved = (&master * 1.5).unwrap();
        *weight.trainable().unwrap() = moved.clone();
        assert_eq!(differ(&weight.dense().unwrap(), &round_trip(&moved, GgmlType::Q4_0).unwrap()), 0.0);
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error_in_every_form() {
        let (frozen, dense) = both(24, 40);
        for weight in [frozen, dense] {
            let refused = [
                weight.forward(&noise(3, 41)).err(),
                weight.backward(&noise(3, 25)).err(),
                weight.forward_into(&noise(3, 41), &noise(3, 24)).err(),
                weight.forward_into(&noise(3, 40), &noise(4, 24)).err(),
            ];
            for error in refused {
                let error = error.expect("refused").to_string();
                assert!(error.contains("the shapes do not fit"), "{error}");
            }
        }
    }

    #[test]
    fn a_row_that_is_not_there_is_an_error() {
        let (frozen, _) = both(24, 40);
        let error = frozen.rows(&[24], &Device::Cpu).unwrap_err().to_string();
        assert!(error.starts_with("row 24 of a matrix with 24 rows"), "{error}");
    }
}
