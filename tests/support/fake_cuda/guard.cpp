// A no-op device guard and hooks: with them a CPU build of torch takes "cuda" (or "mps", if FAKE_DEVICE says so) for a device
// that is there. Nothing is computed: fake tensors have no contents.
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <string>

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::EventFlag, c10::Stream;

template <DeviceType KIND>
struct Guard final : c10::impl::NoOpDeviceGuardImpl<KIND> {
  static Stream only() { return Stream(Stream::DEFAULT, Device(KIND, 0)); }
  Device getDevice() const override { return Device(KIND, 0); }
  Device exchangeDevice(Device) const override { return Device(KIND, 0); }
  Stream getStream(Device) const noexcept override { return only(); }
  Stream getDefaultStream(Device) const override { return only(); }
  Stream exchangeStream(Stream) const noexcept override { return only(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};

// A process has one accelerator: torch refuses two.
static bool is_mps() {
  const char* kind = std::getenv("FAKE_DEVICE");
  return kind != nullptr && std::string(kind) == "mps";
}

struct CudaHooks final : at::CUDAHooksInterface {
  CudaHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return !is_mps(); }
  bool isBuilt() const override { return !is_mps(); }
  bool isAvailable() const override { return !is_mps(); }
  bool hasPrimaryContext(DeviceIndex) const override { return !is_mps(); }
};

struct MpsHooks final : at::MPSHooksInterface {
  void init() const override {}
  bool hasMPS() const override { return is_mps(); }
  bool isBuilt() const override { return is_mps(); }
  bool isAvailable() const override { return is_mps(); }
  bool hasPrimaryContext(DeviceIndex) const override { return is_mps(); }
};

static Guard<DeviceType::CUDA> cuda_guard;
static Guard<DeviceType::MPS> mps_guard;
static c10::impl::DeviceGuardImplRegistrar register_cuda(DeviceType::CUDA, &cuda_guard);
static c10::impl::DeviceGuardImplRegistrar register_mps(DeviceType::MPS, &mps_guard);
namespace at {
using ::CudaHooks;
using ::MpsHooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CudaHooks)
C10_REGISTER_CLASS(MPSHooksRegistry, MPSHooks, MpsHooks)
}
