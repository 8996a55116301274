//! Kernels in a row: recorded as a list, then run in one compute pass and one submit.
//!
//! What a kernel must be told stands in a uniform, and equal parameters stand there once, so that a token of a deep model
//! hands over a few hundred bytes. Bind groups are kept from pass to pass: the buffers hardly change.

use super::device::Gpu;
use super::pipelines::{Kernel, PARAMS_BYTES, Pipelines};
use crate::error::Result;
use bytemuck::NoUninit;
use std::collections::HashMap;
use wgpu::{BindGroup, BindGroupLayout, Buffer, BufferUsages, ComputePipeline};

/// Invocations of a workgroup, in every kernel.
pub const GROUP: u64 = 64;

type Params = [u8; PARAMS_BYTES as usize];

/// Kernels with their operands, in order.
pub struct Pass {
    steps: Vec<Step>,
    params: Vec<Params>,
    places: HashMap<Params, usize>,
    most_groups: u64,
}

struct Step {
    kernel: Kernel,
    buffers: Vec<Buffer>,
    /// Place in `params`.
    params: usize,
    groups: [u32; 3],
}

impl Pass {
    /// Adds a kernel.
    /// - `params`: its struct in WGSL, field by field
    /// - `groups`: workgroups, numbered by the kernel as x + y * (number of x)
    /// - `layers`: the third dimension
    pub fn run(&mut self, kernel: Kernel, buffers: &[&Buffer], params: &impl NoUninit, groups: u64, layers: u64) {
        if groups == 0 || layers == 0 {
            return;
        }
        let bytes = bytemuck::bytes_of(params);
        let mut whole = [0; PARAMS_BYTES as usize];
        whole[..bytes.len()].copy_from_slice(bytes);
        let params = *self.places.entry(whole).or_insert_with(|| {
            self.params.push(whole);
            self.params.len() - 1
        });
        let x = groups.min(self.most_groups);
        let groups = [x as u32, groups.div_ceil(x) as u32, layers as u32];
        self.steps.push(Step { kernel, buffers: buffers.iter().map(|b| (*b).clone()).collect(), params, groups });
    }
}

/// A device with what its kernels need besides their operands.
pub struct Runner {
    /// The device.
    pub gpu: Gpu,
    pipelines: Pipelines,
    groups: HashMap<(Kernel, Vec<Buffer>), BindGroup>,
    uniform: Buffer,
    /// Takes output rows and can be mapped.
    staging: Buffer,
    /// Bound where a kernel needs no operand.
    pub nothing: Buffer,
}

impl Runner {
    /// Nothing compiled, nothing bound.
    ///
    /// # Errors
    /// As [`Gpu::buffer`].
    pub fn new(gpu: Gpu) -> Result<Self> {
        let uniform = uniform(&gpu, 64)?;
        let staging = gpu.buffer("output", 4, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        let nothing = gpu.storage("no operand", 4)?;
        Ok(Self { gpu, pipelines: Pipelines::default(), groups: HashMap::new(), uniform, staging, nothing })
    }

    /// Compiles kernels ahead of their first use.
    ///
    /// # Errors
    /// As [`Pipelines::get`].
    pub fn prepare(&mut self, kernels: impl IntoIterator<Item = Kernel>) -> Result<()> {
        kernels.into_iter().try_for_each(|k| self.pipelines.get(&self.gpu, k).map(|_| ()))
    }

    /// An empty pass.
    pub fn begin(&self) -> Pass {
        let most_groups = u64::from(self.gpu.limits.max_compute_workgroups_per_dimension);
        Pass { steps: Vec::new(), params: Vec::new(), places: HashMap::new(), most_groups }
    }

    /// Forgets bind groups, and with them buffers that were replaced.
    pub fn forget_buffers(&mut self) {
        self.groups.clear();
    }

    /// Runs a pass; then appends the first `count` numbers of `output` to `out`.
    ///
    /// # Errors
    /// As [`Gpu::wait`], [`Gpu::read`] and [`Pipelines::get`].
    pub fn run(&mut self, pass: &Pass, output: &Buffer, count: usize, out: &mut Vec<f32>) -> Result<()> {
        let bound = self.bind(pass)?;
        let stride = self.stride();
        let mut bytes = vec![0; pass.params.len() * stride];
        for (place, params) in bytes.chunks_mut(stride).zip(&pass.params) {
            place[..params.len()].copy_from_slice(params);
        }
        self.gpu.write(&self.uniform, 0, &bytes)?;
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut compute = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for (step, (pipeline, group)) in pass.steps.iter().zip(&bound) {
                compute.set_pipeline(pipeline);
                compute.set_bind_group(0, group, &[(step.params * stride) as u32]);
                let [x, y, z] = step.groups;
                compute.dispatch_workgroups(x, y, z);
            }
        }
        if count == 0 {
            return self.gpu.submit(encoder);
        }
        let size = count as u64 * 4;
        if self.staging.size() < size {
            self.staging = self.gpu.buffer("output", size, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        }
        encoder.copy_buffer_to_buffer(output, 0, &self.staging, 0, size);
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.read(&self.staging, count, out)
    }

    /// Bytes from one kernel's parameters to the next.
    fn stride(&self) -> usize {
        PARAMS_BYTES.next_multiple_of(u64::from(self.gpu.limits.min_uniform_buffer_offset_alignment)) as usize
    }

    /// The pipeline and the bind group of every step, and room for the parameters.
    fn bind(&mut self, pass: &Pass) -> Result<Vec<(ComputePipeline, BindGroup)>> {
        let bytes = (pass.params.len() * self.stride()) as u64;
        if self.uniform.size() < bytes {
            self.uniform = uniform(&self.gpu, bytes.next_power_of_two())?;
            self.groups.clear();
        }
        let mut bound = Vec::with_capacity(pass.steps.len());
        for step in &pass.steps {
            let (pipeline, layout) = self.pipelines.get(&self.gpu, step.kernel)?;
            let group = self
                .groups
                .entry((step.kernel, step.buffers.clone()))
                .or_insert_with(|| group(&self.gpu, layout, &step.buffers, &self.uniform));
            bound.push((pipeline.clone(), group.clone()));
        }
        Ok(bound)
    }
}

fn group(gpu: &Gpu, layout: &BindGroupLayout, buffers: &[Buffer], uniform: &Buffer) -> BindGroup {
    let params = wgpu::BufferBinding { buffer: uniform, offset: 0, size: wgpu::BufferSize::new(PARAMS_BYTES) };
    let resources = buffers.iter().map(Buffer::as_entire_binding).chain([wgpu::BindingResource::Buffer(params)]);
    let entries: Vec<_> =
        (0..).zip(resources).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
    gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
}

fn uniform(gpu: &Gpu, bytes: u64) -> Result<Buffer> {
    gpu.buffer("parameters", bytes, BufferUsages::UNIFORM | BufferUsages::COPY_DST)
}
