// A torch device that is no CPU, for machines without a GPU. Its memory is the CPU's and so are its
// kernels, but what a GPU refuses it refuses: tensors of two devices in one operation, a CPU tensor
// indexed by one of the device, a generator of the CPU. Autocast has the lists of operations CUDA's
// has, but for norm. Loaded by pretend.py.

#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <set>
#include <sstream>

namespace {

using at::Tensor;
constexpr auto HERE = c10::DeviceType::PrivateUse1;
const c10::Device PRETEND(HERE, 0);

// What a program waits for on a GPU: values read by the CPU, results whose size depends on values,
// and what it sends of ordinary memory unless it is little (CUDA's API synchronization behavior)

constexpr size_t sent_at_once = 64 * 1024;
std::atomic<int64_t> waits = 0;
thread_local int inside = 0;

void count_wait() { waits += inside == 0; }

struct Inside {
  Inside() { inside++; }
  ~Inside() { inside--; }
};

const std::set<std::string> sized_by_values = {
    "aten::_unique2", "aten::bincount", "aten::equal", "aten::masked_select", "aten::nonzero",
    "aten::repeat_interleave", "aten::unique_consecutive", "aten::unique_dim"};

// Memory

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* found = size ? c10::alloc_cpu(size) : nullptr;
    return {found, found, &c10::free_cpu, PRETEND};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(HERE, &allocator);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<HERE> {  // one device, one stream, no events
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, PRETEND); }
  c10::Device exchangeDevice(c10::Device) const override { return PRETEND; }
  c10::Device getDevice() const override { return PRETEND; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Generators: the device's own, drawing from one of the CPU inside

struct Generator final : c10::GeneratorImpl {
  explicit Generator(at::Generator inside)
      : GeneratorImpl(PRETEND, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        inside(std::move(inside)) {}
  void set_current_seed(uint64_t seed) override { inside.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inside.set_offset(offset); }
  uint64_t get_offset() const override { return inside.get_offset(); }
  uint64_t current_seed() const override { return inside.current_seed(); }
  uint64_t seed() override { return inside.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    inside.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inside.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override { return new Generator(inside.clone()); }
  at::Generator inside;
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>(at::detail::createCPUGenerator());
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator found =
        at::make_generator<Generator>(at::detail::getDefaultCPUGenerator());
    return found;
  }
};

// Tensors

Tensor on_cpu(const Tensor& given) {  // the same memory
  if (!given.defined() || !given.device().is_privateuseone()) return given;
  const auto options = given.options().device(at::kCPU);
  return at::from_blob(given.data_ptr(), given.sizes(), given.strides(), [](void*) {}, options);
}

at::ScalarType type(std::optional<at::ScalarType> asked) {
  return asked.value_or(at::get_default_dtype_as_scalartype());
}

Tensor empty(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &allocator, keys, type(dtype), format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &allocator, keys, type(dtype));
}

Tensor as_strided(
    const Tensor& given, c10::IntArrayRef size, c10::IntArrayRef stride,
    std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(given, size, stride, offset);
}

Tensor view(const Tensor& given, c10::IntArrayRef size) { return at::native::view(given, size); }

Tensor reshape_alias(const Tensor& given, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::_reshape_alias(given, size, stride);
}

const Tensor& resize_(
    const Tensor& given, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* found = given.unsafeGetTensorImpl();
  at::native::resize_impl_cpu_(found, C10_AS_INTARRAYREF_SLOW(size), std::nullopt);
  if (format) found->empty_tensor_restride(*format);
  return given;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (to.is_cpu() || (from.is_cpu() && from.nbytes() > sent_at_once)) count_wait();
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const Tensor& given) {
  count_wait();
  return at::_local_scalar_dense(on_cpu(given));
}

Tensor& set_part(
    Tensor& given, at::Storage storage, int64_t offset, c10::IntArrayRef size,
    c10::IntArrayRef stride) {
  return at::native::set_storage_cpu_(given, storage, offset, size, stride);
}

Tensor& set_storage(Tensor& given, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / given.element_size());
  return given.set_(storage, 0, {count}, {});
}

Tensor& set_tensor(Tensor& given, const Tensor& from) {
  return given.set_(from.storage(), from.storage_offset(), from.sizes(), from.strides());
}

// Convolutions have a door of their own for devices torch does not know

void all_here(const char* name, std::initializer_list<Tensor> given) {
  for (const auto& one : given) {
    TORCH_CHECK(
        !one.defined() || one.device() == PRETEND, "PRETEND: ", name, ": CPU tensor ", one.sizes());
  }
}

Tensor convolution(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  all_here("convolution", {x, weight, bias.value_or(Tensor())});
  const Inside no_wait;
  std::optional<Tensor> added;
  if (bias && bias->defined()) added = on_cpu(*bias);
  return at::convolution_symint(
             on_cpu(x), on_cpu(weight), added, stride, padding, dilation, transposed,
             output_padding, groups)
      .to(PRETEND);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& slope, const Tensor& x, const Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> wanted) {
  all_here("convolution_backward", {slope, x, weight});
  const Inside no_wait;
  const std::vector<c10::SymInt> bias{slope.sym_size(1)};
  auto [dx, dweight, dbias] = at::convolution_backward_symint(
      on_cpu(slope), on_cpu(x), on_cpu(weight),
      wanted[2] ? at::OptionalSymIntArrayRef(bias) : std::nullopt, stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  const auto back = [](const Tensor& one) { return one.defined() ? one.to(PRETEND) : one; };
  return {back(dx), back(dweight), back(dbias)};
}

// Everything else: check as a GPU would, then compute on the CPU

const std::set<std::string> no_scalars = {  // a CPU tensor of no dimension will not do for these
    "aten::addmm", "aten::bincount", "aten::bmm", "aten::cat", "aten::embedding", "aten::gather",
    "aten::index_select", "aten::mm", "aten::native_batch_norm", "aten::nll_loss_forward",
    "aten::scatter", "aten::scatter_", "aten::scatter_add", "aten::scatter_add_", "aten::stack"};

void otherwise(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  const bool indexes = name.find("index_put") != std::string::npos || name == "aten::index";
  const auto refuse = [&](const std::string& why) {
    TORCH_CHECK(false, "PRETEND: ", name, ": ", why);
  };
  bool here = false, elsewhere = false;
  std::ostringstream seen;
  const auto see = [&](const Tensor& one) {
    if (!one.defined()) return;
    seen << ' ' << one.device() << one.sizes();
    if (one.device() == PRETEND) {
      here = true;
    } else if (one.dim() || no_scalars.count(name)) {
      elsewhere = true;
    }
  };
  const size_t count = op.schema().arguments().size(), first = stack->size() - count;
  for (size_t place = 0; place < count; place++) {
    auto& value = (*stack)[first + place];
    if (indexes && place == 1) {  // indices may lie on the CPU
      for (const auto& one : value.toOptionalTensorVector()) {
        if (one && one->defined() && one->scalar_type() == at::kBool) count_wait();
      }
      continue;
    }
    if (value.isTensor()) {
      see(value.toTensor());
    } else if (value.isTensorList()) {
      for (const auto& one : value.toTensorVector()) see(one);
    } else if (value.isOptionalTensorList()) {
      for (const auto& one : value.toOptionalTensorVector()) see(one.value_or(Tensor()));
    } else if (value.isGenerator() && value.toGenerator().defined()) {
      const auto& given = value.toGenerator();
      if (given.device() != PRETEND) refuse("a generator of the CPU");
      value = static_cast<Generator*>(given.unsafeGetGeneratorImpl())->inside;
    }
  }
  if (elsewhere) refuse("tensors of two devices:" + seen.str());
  if (indexes && !here) refuse("a CPU tensor indexed by one of the device:" + seen.str());
  if (sized_by_values.count(name)) count_wait();
  const Inside no_wait;
  at::native::cpu_fallback(op, stack, /*error_on_views=*/false);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&otherwise>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("resize_", resize_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

using at::autocast::CastPolicy;

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SINGLE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define OPTIONAL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(SINGLE)
  AT_FORALL_FP32_SET_OPT_DTYPE(OPTIONAL)
  AT_FORALL_PROMOTE(WIDEST)
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("waits", [] { return waits.load(); });
}
