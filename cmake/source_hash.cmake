# Writes OUTPUT, a C++ file with the hash of the sources in ROOT; genfast/_native.py computes the same of a checkout, to
# see whether the extension was built from it.
file(GLOB_RECURSE sources RELATIVE ${ROOT} ${ROOT}/csrc/*.h ${ROOT}/csrc/*.cuh ${ROOT}/csrc/*.cpp ${ROOT}/csrc/*.cu)
list(APPEND sources CMakeLists.txt)
list(SORT sources)
set(text "")
foreach(source ${sources})
  file(SHA256 ${ROOT}/${source} hash)
  string(APPEND text "${hash} ${source}\n")
endforeach()
string(SHA256 hash "${text}")
file(WRITE ${OUTPUT} "namespace gf {\nextern const char kSourceHash[];\nconst char kSourceHash[] = \"${hash}\";\n}\n")
