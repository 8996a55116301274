//! Which kernels there are, the WGSL each is made of, and the pipelines that wgpu compiles from it.

use super::device::Gpu;
use super::weights::Form;
use crate::engine::KvType;
use crate::error::{Error, Kind, Result};
use pollster::block_on;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use wgpu::{BindGroupLayout, ComputePipeline, ErrorFilter};

/// A kernel, in the variant that its operands need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// W x for few rows of x.
    Matvec(Form),
    /// W x for many.
    Matmul(Form),
    /// Rows of a table.
    Gather(Form),
    RmsNorm,
    LayerNorm,
    /// Rotation, and the way into the cache.
    Rope(Store),
    Attention(Store),
    SwiGlu,
    /// GELU and tanh.
    Activate,
    Mean,
}

/// How a cache holds its numbers: [`KvType`], as a key of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Store {
    F32,
    F16,
}

impl From<KvType> for Store {
    fn from(kv: KvType) -> Self {
        match kv {
            KvType::F32 => Self::F32,
            KvType::F16 => Self::F16,
        }
    }
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

impl Kernel {
    /// Name of its entry point.
    fn entry(self) -> &'static str {
        match self {
            Self::Matvec(_) => "matvec",
            Self::Matmul(_) => "matmul",
            Self::Gather(_) => "gather",
            Self::RmsNorm => "rms_norm",
            Self::LayerNorm => "layer_norm",
            Self::Rope(_) => "rope",
            Self::Attention(_) => "attention",
            Self::SwiGlu => "swiglu",
            Self::Activate => "activate",
            Self::Mean => "mean",
        }
    }

    /// Its storage buffers in the order of their bindings; its parameters follow as a uniform.
    fn buffers(self) -> &'static [Use] {
        use Use::{Read, Write};
        match self {
            Self::Matvec(_) | Self::Matmul(_) => &[Read, Read, Read, Write],
            Self::Gather(_) | Self::RmsNorm => &[Read, Read, Write],
            Self::LayerNorm => &[Write, Read, Read],
            Self::Rope(_) => &[Write, Read, Read, Read, Write, Write],
            Self::Attention(_) => &[Read, Read, Read, Write],
            Self::SwiGlu => &[Write, Read],
            Self::Activate => &[Write],
            Self::Mean => &[Read, Write],
        }
    }

    /// Its source. WGSL has no includes: what kernels share stands in front.
    fn source(self) -> String {
        let weights = |form: Form| [include_str!("weights.wgsl"), form.source()].concat();
        let linear = include_str!("kernels/linear.wgsl");
        let reduce = include_str!("kernels/reduce.wgsl");
        match self {
            Self::Matvec(form) => [&weights(form), linear, include_str!("kernels/matvec.wgsl")].concat(),
            Self::Matmul(form) => [&weights(form), linear, include_str!("kernels/matmul.wgsl")].concat(),
            Self::Gather(form) => [&weights(form), include_str!("kernels/gather.wgsl")].concat(),
            Self::RmsNorm => [reduce, include_str!("kernels/rms_norm.wgsl")].concat(),
            Self::LayerNorm => [reduce, include_str!("kernels/layer_norm.wgsl")].concat(),
            Self::Rope(store) => {
                let write = match store {
                    Store::F32 => include_str!("kernels/write_f32.wgsl"),
                    Store::F16 => include_str!("kernels/write_f16.wgsl"),
                };
                [write, include_str!("kernels/rope.wgsl")].concat()
            }
            Self::Attention(store) => {
                let cache = match store {
                    Store::F32 => include_str!("kernels/cache_f32.wgsl"),
                    Store::F16 => include_str!("kernels/cache_f16.wgsl"),
                };
                [reduce, cache, include_str!("kernels/attention.wgsl")].concat()
            }
            Self::SwiGlu => include_str!("kernels/swiglu.wgsl").to_owned(),
            Self::Activate => include_str!("kernels/activate.wgsl").to_owned(),
            Self::Mean => include_str!("kernels/mean.wgsl").to_owned(),
        }
    }
}

/// Bytes that every kernel's parameters are filled up to.
pub const PARAMS_BYTES: u64 = 64;

/// Compiled kernels.
#[derive(Default)]
pub struct Pipelines(HashMap<Kernel, (ComputePipeline, BindGroupLayout)>);

impl Pipelines {
    /// A kernel, compiled at the first call.
    ///
    /// # Errors
    /// `Io` when the driver refuses it.
    pub fn get(&mut self, gpu: &Gpu, kernel: Kernel) -> Result<&(ComputePipeline, BindGroupLayout)> {
        match self.0.entry(kernel) {
            Entry::Occupied(made) => Ok(made.into_mut()),
            Entry::Vacant(place) => {
                let scope = gpu.device.push_error_scope(ErrorFilter::Validation);
                let made = compile(gpu, kernel);
                let refused = block_on(scope.pop());
                gpu.check()?;
                match refused {
                    Some(e) => {
                        Err(Error::new(Kind::Io, format!("{}: kernel {kernel:?}", gpu.adapter()), e.to_string()))
                    }
                    None => Ok(place.insert(made)),
                }
            }
        }
    }
}

fn compile(gpu: &Gpu, kernel: Kernel) -> (ComputePipeline, BindGroupLayout) {
    let label = Some(kernel.entry());
    let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
    let uses = kernel.buffers().iter().map(|u| (storage(*u == Use::Read), false));
    let entries: Vec<_> = uses
        .chain([(wgpu::BufferBindingType::Uniform, true)])
        .enumerate()
        .map(|(i, (ty, has_dynamic_offset))| wgpu::BindGroupLayoutEntry {
            binding: i as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
            count: None,
        })
        .collect();
    let device = &gpu.device;
    let groups = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let source = wgpu::ShaderSource::Wgsl(kernel.source().into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &[Some(&groups)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&layout),
        module: &module,
        entry_point: label,
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false, // every kernel writes there before it reads
            ..Default::default()
        },
        cache: None,
    });
    (pipeline, groups)
}
