// How an op describes a kernel to Python: one line an argument, in the order of the call, inputs before outputs.
//
//   GF_KERNEL(planar_forward, PlanarForward) {           // the entry point, and its argument struct
//     k.size(GF(n)), k.size(GF(d)), k.size(GF(k));       // sizes that shapes name and the struct keeps
//     k.type(GF(dtype));                                 // the dtype of tensors that do not say another
//     k.tensor(GF(input), "n d");
//     k.scalar(GF(inverse));
//     k.tensor(GF(log_det), "n").sum();                  // float64 where dtype is, else float32
//     k.tensor(GF(a), "k n").sum().optional();
//     k.workspace(GF(workspace), DType::f32, [](const Args& a, Backend) { return a.n; });
//   }
//
// The binding (binding.cpp) checks a call against this, fills the struct, and calls the entry point of the backend. A
// member `Stream stream` gets the current stream. `const void*` is an input and `void*` an output, both contiguous and
// of the struct's dtype; `const float*` and the like are of their own dtype; a Strided is read wherever it lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "backend.h"
#include "stream.h"
#include "strided.h"
#include "tensor_arg.h"

namespace gf {

constexpr std::size_t kMaxArgs = 512;  // bytes of an argument struct
constexpr int kMaxArguments = 32, kMaxSizes = 16, kMaxTypes = 4;

enum class Kind : uint8_t { boolean, int32, uint32, int64, real, input, output, strided, strided_output };

// A member of an argument struct; the name is what follows the last dot.
struct Member {
  const char* name;
  std::size_t at;
  Kind kind;
  DType element;  // `other` where the type does not tell
};

template <class T>
constexpr Kind kind_of() {
  if constexpr (std::is_same<T, bool>::value) return Kind::boolean;
  if constexpr (std::is_enum<T>::value || std::is_same<T, int32_t>::value) return Kind::int32;
  if constexpr (std::is_same<T, uint32_t>::value) return Kind::uint32;
  if constexpr (std::is_same<T, int64_t>::value) return Kind::int64;
  if constexpr (std::is_same<T, double>::value) return Kind::real;
  if constexpr (std::is_same<T, Strided>::value) return Kind::strided;
  if constexpr (std::is_same<T, StridedOut>::value) return Kind::strided_output;
  if constexpr (std::is_pointer<T>::value)
    return std::is_const<std::remove_pointer_t<T>>::value ? Kind::input : Kind::output;
}

template <class T>
constexpr DType element_of() {
  using E = std::remove_cv_t<std::remove_pointer_t<T>>;
  if (std::is_same<E, float>::value) return DType::f32;
  if (std::is_same<E, double>::value) return DType::f64;
  if (std::is_same<E, int64_t>::value) return DType::i64;
  if (std::is_same<E, int32_t>::value) return DType::i32;
  if (std::is_same<E, uint8_t>::value) return DType::b8;
  return DType::other;
}

// What torch calls a dtype.
const char* name_of(DType t);

// The type that sums of a floating dtype are computed in.
constexpr DType sum_type(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

// Sets a member of an argument struct.
template <class T>
void put(unsigned char* args, std::size_t at, T value) {
  std::memcpy(args + at, &value, sizeof(T));
}

// Sets of dtypes, as bits.
constexpr unsigned bit(DType t) { return 1u << static_cast<int>(t); }
constexpr unsigned kWide = bit(DType::f32) | bit(DType::f64);
constexpr unsigned kFloating = kWide | bit(DType::f16) | bit(DType::bf16);
constexpr unsigned kAnyDType = bit(DType::other) - 1;

struct Shape {
  int ndim = 0;
  int64_t dim[Tensor::kMaxDim] = {};  // a number, or -1 - the index of a size
  int factor[Tensor::kMaxDim] = {};   // by which that size is multiplied
};

struct Kernel;

struct Argument {
  Kernel* kernel;
  std::string name;
  Kind kind;
  std::size_t at;
  DType fixed = DType::other;
  int type = 0;              // index of the dtype that a call chooses, where it is not fixed
  bool is_sum = false;       // the type that sums of that dtype are computed in
  bool is_optional = false;  // None, or left out: null
  bool is_returned = false;  // on the CPU it may be left out, and its one number is what the call returns
  bool flag_chooses = false;
  std::ptrdiff_t flag = -1;
  std::vector<Shape> shapes;

  bool is_tensor() const { return kind >= Kind::input; }
  bool is_output() const { return kind == Kind::output || kind == Kind::strided_output; }

  Argument& optional() {
    is_optional = true;
    return *this;
  }
  Argument& sum() {
    is_sum = true;
    return *this;
  }
  Argument& returned() {
    is_returned = is_optional = true;
    return *this;
  }
  // Of another dtype that the call chooses, named by its member.
  Argument& of(const char* type_name);
  // Another shape is taken too; the flag tells whether it is the first.
  Argument& or_shape(const char* shape, Member first);
  // Another shape is wanted where the flag, a scalar of the call, is set.
  Argument& shape_if(Member set, const char* shape);
};

struct Kernel {
  struct Named {
    std::string name;
    std::ptrdiff_t at;  // in the struct, or -1
    unsigned mask;      // of dtypes
  };
  using Hook = void (*)();

  const char* name;
  std::size_t bytes, stream_at;
  Entry entries[kBackends];
  bool returns_bool;
  const Kernel* next = nullptr;

  std::vector<Argument> arguments;
  std::vector<Named> sizes, types;
  std::ptrdiff_t workspace_at = -1;
  DType workspace_type = DType::other;
  void (*call_prepare)(Hook, void*, Backend) = nullptr;
  int64_t (*call_workspace)(Hook, const void*, Backend) = nullptr;
  double (*call_work)(Hook, const void*) = nullptr;
  Hook prepare_hook = nullptr, workspace_hook = nullptr, work_hook = nullptr;

  Argument& add(Member m);
  static Named named(Member m, unsigned mask = 0);
  int size_index(const std::string& size_name);
  Shape parse(const char* text);

  // Checks tensors (one an argument; scalars' are not read) and fills the struct. Returns the device.
  int bind(const Tensor* tensors, unsigned char* args) const;
};

// What an op says about a kernel whose argument struct is Args.
template <class Args>
struct Description {
  Kernel& kernel;

  void size(Member m) const { kernel.sizes.push_back(kernel.named(m)); }
  void type(Member m, unsigned allowed = kFloating) const { kernel.types.push_back(kernel.named(m, allowed)); }
  Argument& scalar(Member m) const { return kernel.add(m); }
  // A shape names sizes and numbers: "n d", "k 3", "n 2d", "" for a tensor without dimensions.
  Argument& tensor(Member m, const char* shape) const {
    Argument& a = kernel.add(m);
    a.shapes.push_back(kernel.parse(shape));
    return a;
  }
  // Memory for the time of the call, or null: as many numbers as f(args, backend) says, of a dtype or (`other`) of the
  // type that sums of the first dtype are computed in.
  void workspace(Member m, DType element, int64_t (*f)(const Args&, Backend)) const {
    kernel.workspace_at = static_cast<std::ptrdiff_t>(m.at);
    kernel.workspace_type = element;
    kernel.workspace_hook = reinterpret_cast<Kernel::Hook>(f);
    kernel.call_workspace = [](Kernel::Hook h, const void* a, Backend b) {
      return reinterpret_cast<int64_t (*)(const Args&, Backend)>(h)(*static_cast<const Args*>(a), b);
    };
  }
  // Runs on the filled struct before the workspace is sized: checks and members that the lines above cannot express.
  void prepare(void (*f)(Args&, Backend)) const {
    kernel.prepare_hook = reinterpret_cast<Kernel::Hook>(f);
    kernel.call_prepare = [](Kernel::Hook h, void* a, Backend b) {
      reinterpret_cast<void (*)(Args&, Backend)>(h)(*static_cast<Args*>(a), b);
    };
  }
  // About how many nanoseconds a call takes on one thread, if not one for each element of the tensors. Short calls use
  // one thread; long ones let other Python threads run.
  void work(double (*f)(const Args&)) const {
    kernel.work_hook = reinterpret_cast<Kernel::Hook>(f);
    kernel.call_work = [](Kernel::Hook h, const void* a) {
      return reinterpret_cast<double (*)(const Args&)>(h)(*static_cast<const Args*>(a));
    };
  }
};

// The kernels of this build, the first of a list.
const Kernel*& first_kernel();

// Puts a kernel in that list when the module is loaded.
struct Registration {
  Kernel kernel;
  Registration(const char* name, std::size_t bytes, std::size_t stream_at, const Entry (&entries)[kBackends],
               bool returns_bool, void (*describe)(Kernel&));
};

}  // namespace gf

// clang-format off
#define GF(member)                                                                       \
  gf::Member {                                                                           \
    #member, offsetof(Args, member), gf::kind_of<decltype(std::declval<Args&>().member)>(), \
        gf::element_of<decltype(std::declval<Args&>().member)>()                         \
  }

#define GF_KERNEL(fn, Struct)                                                            \
  namespace {                                                                            \
  struct fn##_description {                                                              \
    using Args = Struct;                                                                 \
    static_assert(std::is_trivially_copyable<Args>::value && sizeof(Args) <= gf::kMaxArgs, "plain and small"); \
    static void lines(const gf::Description<Args>& k);                                   \
    static void describe(gf::Kernel& kernel) { lines(gf::Description<Args>{kernel}); }   \
  };                                                                                     \
  const gf::Registration fn##_registration(                                              \
      #fn, sizeof(Struct), offsetof(Struct, stream), GF_ENTRIES(Struct, fn),             \
      std::is_same<bool, decltype(gf::baseline::fn(std::declval<const Struct&>()))>::value, \
      &fn##_description::describe);                                                      \
  }                                                                                      \
  void fn##_description::lines(const gf::Description<Args>& k)
// clang-format on
