//! A device of wgpu's: chosen, asked for all that its adapter has, and watched. Whatever goes wrong on it becomes an error with
//! its numbers; nothing here panics or ends the process.

use super::Adapter;
use crate::error::{Error, Kind, Result};
use pollster::block_on;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use wgpu::{Buffer, BufferUsages, CommandEncoder, ErrorFilter, Limits};

/// Bytes that are handed to the device before it must have taken them: weights do not pile up in staging memory.
const IN_FLIGHT: u64 = 64 << 20;

/// A device and its queue.
pub struct Gpu {
    /// Makes resources.
    pub device: wgpu::Device,
    /// Takes commands.
    pub queue: wgpu::Queue,
    /// What the device was asked for, and so what it allows.
    pub limits: Limits,
    adapter: Adapter,
    trouble: Arc<Mutex<Trouble>>,
    /// Bytes in buffers.
    held: AtomicU64,
    /// Bytes handed over since the device last took all.
    written: AtomicU64,
}

/// What the device said outside of any call of ours; the first of each stays.
#[derive(Default)]
struct Trouble {
    lost: Option<String>,
    error: Option<String>,
}

impl Gpu {
    /// The fastest adapter there is, with everything it allows but what `lower` takes away.
    ///
    /// # Errors
    /// `Missing` when there is no adapter; `Io` when its driver makes no device.
    pub fn open(lower: impl FnOnce(&mut Limits)) -> Result<Self> {
        let adapter = adapter()?;
        let about = describe(&adapter.get_info());
        let mut limits = adapter.limits();
        lower(&mut limits);
        let wish = wgpu::DeviceDescriptor { required_limits: limits.clone(), ..Default::default() };
        let (device, queue) = block_on(adapter.request_device(&wish))
            .map_err(|e| Error::new(Kind::Io, about.to_string(), format!("the driver makes no device: {e}")))?;
        let trouble = Arc::new(Mutex::new(Trouble::default()));
        let heard = trouble.clone();
        device.set_device_lost_callback(move |reason, message| {
            let mut trouble = heard.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.lost.get_or_insert_with(|| format!("{reason:?} {message}").trim().to_owned());
        });
        let heard = trouble.clone();
        // Without a handler of its own wgpu panics.
        device.on_uncaptured_error(Arc::new(move |e| {
            heard.lock().unwrap_or_else(PoisonError::into_inner).error.get_or_insert_with(|| one_line(&e.to_string()));
        }));
        let (held, written) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { device, queue, limits, adapter: about, trouble, held, written })
    }

    /// The adapter.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Bytes that one binding may hold.
    pub fn most_bytes(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size) / 4 * 4
    }

    /// A buffer for kernels, zeros at first.
    /// - `what`: stands in messages
    ///
    /// # Errors
    /// `Limit` when it is larger than a binding, or the memory is used up.
    pub fn storage(&self, what: &str, bytes: u64) -> Result<Buffer> {
        if bytes > self.most_bytes() {
            let message = format!("needs {bytes} bytes, but this GPU binds at most {} at once", self.most_bytes());
            return Err(Error::new(Kind::Limit, what, message));
        }
        self.buffer(what, bytes, BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST)
    }

    /// A buffer of any use.
    ///
    /// # Errors
    /// `Limit` when it is too large or the memory is used up; `Io` when the device refuses it for another reason.
    pub fn buffer(&self, what: &str, bytes: u64, usage: BufferUsages) -> Result<Buffer> {
        let size = bytes.max(4).next_multiple_of(4);
        let memory = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(ErrorFilter::Validation);
        let descriptor = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        let (validation, memory) = (block_on(validation.pop()), block_on(memory.pop()));
        self.check()?;
        if memory.is_some() {
            let held = self.held.load(Ordering::Relaxed);
            let message = format!(
                "needs {size} bytes, but the memory of this GPU is used up ({held} bytes held by this model); \
                 quantize the model smaller, lower --ctx, or use --engine cpu"
            );
            return Err(Error::new(Kind::Limit, what, message));
        }
        if let Some(e) = validation {
            return Err(Error::new(Kind::Io, what, format!("{size} bytes refused: {}", one_line(&e.to_string()))));
        }
        self.held.fetch_add(size, Ordering::Relaxed);
        Ok(buffer)
    }

    /// A buffer that is given up.
    pub fn release(&self, buffer: &Buffer) {
        self.held.fetch_sub(buffer.size(), Ordering::Relaxed);
    }

    /// Hands over bytes (a multiple of 4) for a buffer, from byte `at` on.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn write(&self, buffer: &Buffer, at: u64, bytes: &[u8]) -> Result<()> {
        self.queue.write_buffer(buffer, at, bytes);
        let written = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        if written < IN_FLIGHT {
            return Ok(());
        }
        self.queue.submit([]);
        self.wait()
    }

    /// Runs what was recorded, after what was handed over, and waits for it.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn submit(&self, encoder: CommandEncoder) -> Result<()> {
        self.queue.submit([encoder.finish()]);
        self.wait()
    }

    /// Copies a buffer that can be mapped into `out`, behind what is there.
    /// - `count`: numbers, from the buffer's beginning
    ///
    /// # Errors
    /// As [`Gpu::wait`]; `Io` when the driver does not map it.
    pub fn read(&self, buffer: &Buffer, count: usize, out: &mut Vec<f32>) -> Result<()> {
        let refused = |e: String| Error::new(Kind::Io, self.adapter.to_string(), format!("output cannot be read: {e}"));
        let (tell, told) = mpsc::channel();
        let range = 0..count as u64 * 4;
        buffer.map_async(wgpu::MapMode::Read, range.clone(), move |mapped| {
            let _ = tell.send(mapped); // nobody listens once waiting has failed
        });
        self.wait()?;
        told.recv().map_err(|e| refused(e.to_string()))?.map_err(|e| refused(e.to_string()))?;
        let view = buffer.get_mapped_range(range).map_err(|e| refused(e.to_string()))?;
        out.extend(view.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        drop(view);
        buffer.unmap();
        Ok(())
    }

    /// Waits until the device has done everything.
    ///
    /// # Errors
    /// `Io` when the device is lost or has refused something.
    pub fn wait(&self) -> Result<()> {
        self.check()?;
        // wgpu panics here, and only here, when the driver reports a lost device while it is waited for.
        let poll = || self.device.poll(wgpu::PollType::wait_indefinitely());
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll));
        self.written.store(0, Ordering::Relaxed);
        self.check()?;
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(Error::new(Kind::Io, self.adapter.to_string(), e.to_string())),
            Err(_) => Err(self.lost("while it was computing")),
        }
    }

    /// What the device has said since it was opened.
    ///
    /// # Errors
    /// `Io` when it is lost or has refused something.
    pub fn check(&self) -> Result<()> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&trouble.lost, &trouble.error) {
            (Some(reason), _) => Err(self.lost(reason)),
            (None, Some(e)) => Err(Error::new(Kind::Io, self.adapter.to_string(), format!("the driver refused: {e}"))),
            (None, None) => Ok(()),
        }
    }

    fn lost(&self, reason: &str) -> Error {
        let message = format!("the device is lost ({reason}); load the model again, or use --engine cpu");
        Error::new(Kind::Io, self.adapter.to_string(), message)
    }
}

/// The adapter that wgpu prefers where speed counts: a GPU of its own, one on the CPU's chip, one in software.
pub fn adapter() -> Result<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let wish = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..wgpu::RequestAdapterOptions::default()
    };
    block_on(instance.request_adapter(&wish)).map_err(|_| {
        let message = "no Vulkan device; install your GPU's Vulkan driver, or a device in software \
            (`apt-get install mesa-vulkan-drivers libvulkan1`), or use --engine cpu";
        Error::new(Kind::Missing, "engine gpu", message)
    })
}

/// An adapter in words.
pub fn describe(info: &wgpu::AdapterInfo) -> Adapter {
    Adapter {
        name: info.name.clone(),
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        software: info.device_type == wgpu::DeviceType::Cpu,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
