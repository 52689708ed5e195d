// What fake_gpu.py can't do from Python: make PyTorch believe that there is one NVIDIA GPU.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

static const c10::Device gpu(c10::DeviceType::CUDA, 0);
static const c10::Stream stream(c10::Stream::DEFAULT, gpu);

// backward() asks which GPU and stream are current, and lets streams wait for each other
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return gpu; }
  c10::Device exchangeDevice(c10::Device) const override { return gpu; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};

namespace at {  // whether there is a GPU; must be known before torch is imported
struct Hooks final : CUDAHooksInterface {
  explicit Hooks(CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};
C10_REGISTER_CLASS_WITH_PRIORITY(CUDAHooksRegistry, CUDAHooks, c10::REGISTRY_PREFERRED, Hooks)
}  // namespace at

// Called once torch is imported: a torch with CUDA brings a guard of its own
extern "C" void install_guard() {
  c10::impl::device_guard_impl_registry[static_cast<int>(gpu.type())] = new Guard();
}
