// Reads the descriptions of kernels and checks calls against them.
#include "kernel.h"

#include <cstring>
#include <stdexcept>

namespace gf {

namespace {

const char* last_part(const char* name) {
  const char* dot = std::strrchr(name, '.');
  return dot ? dot + 1 : name;
}

std::string on_device(int device) { return device >= 0 ? " on cuda:" + std::to_string(device) : " on the CPU"; }

std::string describe(const Tensor& t) {
  if (!t.defined) return "None";
  std::string s = std::string(name_of(t.dtype)) + " [";
  for (int i = 0; i < t.ndim; ++i) s += (i ? ", " : "") + std::to_string(t.shape[i]);
  return s + "]" + on_device(t.device);
}

// What a call has bound so far.
struct Bound {
  int64_t sizes[kMaxSizes];  // -1: not yet
  DType types[kMaxTypes];    // `other`: not yet
  int device = -2;
};

// The size that dimension i must have; -1 where the tensor is the first to say.
int64_t want(const Bound& b, const Shape& shape, int i) {
  const int64_t dim = shape.dim[i];
  if (dim >= 0) return dim;
  const int64_t size = b.sizes[-1 - dim];
  return size < 0 ? -1 : size * shape.factor[i];
}

bool matches(const Bound& b, const Shape& shape, const Tensor& t) {
  if (t.ndim != shape.ndim) return false;
  for (int i = 0; i < t.ndim; ++i) {
    const int64_t w = want(b, shape, i);
    if (w >= 0 ? t.shape[i] != w : t.shape[i] % shape.factor[i] != 0) return false;
  }
  return true;
}

// The dtype that a tensor must have; `other` where it is the first to say.
DType want_type(const Bound& b, const Argument& a) {
  if (a.fixed != DType::other) return a.fixed;
  const DType t = b.types[a.type];
  return a.is_sum && t != DType::other ? sum_type(t) : t;
}

[[noreturn]] void refuse(const Kernel& k, const Bound& b, const Argument& a, const Shape* first, std::size_t shapes,
                         const Tensor& t) {
  const DType type = want_type(b, a);
  std::string s = a.name + ": expected ";
  if (type != DType::other) {
    s += name_of(type);
  } else {
    bool some = false;
    for (int i = 0; i < static_cast<int>(DType::other); ++i)
      if (k.types[a.type].mask >> i & 1u) {
        s += (some ? "|" : "") + std::string(name_of(static_cast<DType>(i)));
        some = true;
      }
  }
  for (std::size_t q = 0; q < shapes; ++q) {
    s += q ? " or [" : " [";
    for (int i = 0; i < first[q].ndim; ++i) {
      const int64_t w = want(b, first[q], i);
      s += (i ? ", " : "") + (w >= 0 ? std::to_string(w) : k.sizes[-1 - first[q].dim[i]].name);
    }
    s += "]";
  }
  throw std::invalid_argument(s + on_device(b.device == -2 ? t.device : b.device) + ", got " + describe(t));
}

}  // namespace

const char* name_of(DType t) {
  constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16", "int64",
                                   "int32",   "uint8",   "bool",    "other"};
  return names[static_cast<int>(t)];
}

const Kernel*& first_kernel() {
  static const Kernel* first = nullptr;
  return first;
}

Registration::Registration(const char* name, std::size_t bytes, std::size_t stream_at,
                           const Entry (&entries)[kBackends], bool returns_bool, void (*describe)(Kernel&)) {
  kernel.name = name;
  kernel.bytes = bytes;
  kernel.stream_at = stream_at;
  for (int i = 0; i < kBackends; ++i) kernel.entries[i] = entries[i];
  kernel.returns_bool = returns_bool;
  describe(kernel);
  if (kernel.arguments.size() > kMaxArguments || kernel.sizes.size() > kMaxSizes || kernel.types.size() > kMaxTypes)
    throw std::logic_error(std::string(name) + ": more arguments, sizes or dtypes than kernel.h makes room for");
  kernel.next = first_kernel();
  first_kernel() = &kernel;
}

Argument& Kernel::add(Member m) {
  Argument a;
  a.kernel = this;
  a.name = last_part(m.name);
  a.kind = m.kind;
  a.at = m.at;
  a.fixed = m.element;
  arguments.push_back(a);
  return arguments.back();
}

Kernel::Named Kernel::named(Member m, unsigned mask) {
  return {last_part(m.name), static_cast<std::ptrdiff_t>(m.at), mask};
}

int Kernel::size_index(const std::string& size_name) {
  for (std::size_t i = 0; i < sizes.size(); ++i)
    if (size_name == sizes[i].name) return static_cast<int>(i);
  sizes.push_back({size_name, -1, 0});
  return static_cast<int>(sizes.size()) - 1;
}

Shape Kernel::parse(const char* text) {
  Shape shape;
  for (const char* p = text; *p;) {
    const std::size_t length = std::strcspn(p, " ");
    const std::string word(p, length);
    std::size_t digits = 0;
    const bool number = word[0] >= '0' && word[0] <= '9';
    const int64_t factor = number ? std::stoll(word, &digits) : 1;
    shape.dim[shape.ndim] = digits == length ? factor : -1 - size_index(word.substr(digits));
    shape.factor[shape.ndim++] = digits == length ? 1 : static_cast<int>(factor);
    p += length;
    while (*p == ' ') ++p;
  }
  return shape;
}

Argument& Argument::of(const char* type_name) {
  for (std::size_t i = 0; i < kernel->types.size(); ++i)
    if (kernel->types[i].name == type_name) {
      type = static_cast<int>(i);
      return *this;
    }
  throw std::logic_error(name + ": no dtype " + type_name);
}

Argument& Argument::or_shape(const char* shape, Member first) {
  shapes.push_back(kernel->parse(shape));
  flag = static_cast<std::ptrdiff_t>(first.at);
  return *this;
}

Argument& Argument::shape_if(Member set, const char* shape) {
  shapes.push_back(kernel->parse(shape));
  flag = static_cast<std::ptrdiff_t>(set.at);
  flag_chooses = true;
  return *this;
}

int Kernel::bind(const Tensor* tensors, unsigned char* args) const {
  Bound b;
  for (int64_t& s : b.sizes) s = -1;
  for (DType& t : b.types) t = DType::other;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const Argument& a = arguments[i];
    if (!a.is_tensor()) continue;
    const Tensor& t = tensors[i];
    const Shape* shape = a.shapes.data();
    std::size_t shapes = a.shapes.size();
    if (a.flag_chooses) {
      if (args[a.flag]) ++shape;
      shapes = 1;
    }
    if (!t.defined && a.is_optional) continue;
    if (!t.defined) refuse(*this, b, a, shape, shapes, t);
    if (b.device == -2) b.device = t.device;
    const DType type = want_type(b, a);
    const bool type_ok = type == DType::other ? (types[a.type].mask & bit(t.dtype)) != 0 : t.dtype == type;
    std::size_t chosen = 0;
    while (chosen < shapes && !matches(b, shape[chosen], t)) ++chosen;
    if (!type_ok || chosen == shapes || t.device != b.device) refuse(*this, b, a, shape, shapes, t);
    if (a.flag >= 0 && !a.flag_chooses) put(args, a.flag, chosen == 0);
    if (a.kind != Kind::strided && !t.contiguous)
      throw std::invalid_argument(a.name + ": expected contiguous memory, got " + describe(t) + " with gaps");
    if (t.data == nullptr && t.numel() > 0)
      throw std::invalid_argument(a.name + ": expected a tensor with memory, got " + describe(t) + " without");

    for (int d = 0; d < t.ndim; ++d)
      if (shape[chosen].dim[d] < 0) b.sizes[-1 - shape[chosen].dim[d]] = t.shape[d] / shape[chosen].factor[d];
    if (a.fixed == DType::other && !a.is_sum) b.types[a.type] = t.dtype;
    put(args, a.at, t.data);
    if (a.kind == Kind::strided || a.kind == Kind::strided_output) {
      const int64_t row = t.ndim == 0 ? 0 : t.contiguous ? (t.ndim == 2 ? t.shape[1] : 1) : t.stride[0];
      const int64_t col = t.ndim < 2 ? 0 : t.contiguous ? 1 : t.stride[1];
      put(args, a.at + offsetof(Strided, row), row);
      put(args, a.at + offsetof(Strided, col), col);
    }
  }
  for (std::size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i].at >= 0 && b.sizes[i] >= 0) put(args, sizes[i].at, b.sizes[i]);
  for (std::size_t i = 0; i < types.size(); ++i)
    if (b.types[i] != DType::other) put(args, types[i].at, b.types[i]);
  put(args, stream_at + offsetof(Stream, device), b.device);
  return b.device;
}

}  // namespace gf
