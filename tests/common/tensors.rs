//! safetensors files: written from values, and read back as f32 or i64.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// Values and shape of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// f32.
    F32(Vec<f32>),
    /// i64.
    I64(Vec<i64>),
}

/// Named tensors of a file, by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Values)>;

/// The bytes of a safetensors file.
pub fn bytes(tensors: &Tensors) -> Vec<u8> {
    let raw: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| match values {
            Values::F32(v) => {
                (name.clone(), Dtype::F32, shape.clone(), v.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            Values::I64(v) => {
                (name.clone(), Dtype::I64, shape.clone(), v.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        })
        .collect();
    let views = raw.iter().map(|(name, ty, shape, raw)| {
        (name.as_str(), TensorView::new(*ty, shape.clone(), raw).expect("a shape that fits its bytes"))
    });
    safetensors::serialize(views, None).expect("safetensors")
}

/// Every tensor of a file.
pub fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let one = |(name, t): (String, TensorView)| {
        let data = t.data();
        let values = match t.dtype() {
            Dtype::F32 => {
                Values::F32(data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
            }
            Dtype::I64 => {
                Values::I64(data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect())
            }
            other => panic!("{name} is {other:?}"),
        };
        (name, (t.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(one).collect()
}

/// The f32 values of one tensor.
pub fn floats(tensors: &Tensors, name: &str) -> Vec<f32> {
    match &tensors[name].1 {
        Values::F32(v) => v.clone(),
        Values::I64(_) => panic!("{name} is i64"),
    }
}

/// The largest difference between two files' tensors, which must have the same names and shapes.
#[track_caller]
pub fn largest_difference(a: &Tensors, b: &Tensors) -> f32 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let mut worst = 0f32;
    for (name, (shape, _)) in a {
        assert_eq!(*shape, b[name].0, "{name}");
        for (x, y) in floats(a, name).iter().zip(floats(b, name)) {
            assert!(x.is_finite() && y.is_finite(), "{name}");
            worst = worst.max((x - y).abs());
        }
    }
    worst
}
