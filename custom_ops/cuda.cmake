# CUDA kernels, */*.cu, in the same library. They need no driver: the static CUDA runtime looks for one when the first
# kernel runs, so the library loads on any machine.
set(ONNXFUSE_CUDA "AUTO" CACHE STRING "CUDA kernels: AUTO (where nvcc is found), ON (required) or OFF")
set_property(CACHE ONNXFUSE_CUDA PROPERTY STRINGS AUTO ON OFF)
# A GPU newer than compute capability 9.0 compiles the PTX when it is first used.
set(ONNXFUSE_CUDA_ARCHITECTURES "80-real;86-real;89-real;90a-real;80-virtual" CACHE STRING
  "What to compile the CUDA kernels for, as CMake's CUDA_ARCHITECTURES")
set(oldest_nvcc 12.0)  # the first that knows compute capability 9.0a

set(obstacle "")
if(ONNXFUSE_CUDA STREQUAL "OFF")
  set(obstacle "as ONNXFUSE_CUDA=OFF asks")
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(obstacle "since no working nvcc is on the PATH or in CUDACXX (see 'CUDA' in README.md)")
  else()
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE version ERROR_QUIET)
    if(NOT version MATCHES "release ([0-9]+\\.[0-9]+)" OR CMAKE_MATCH_1 VERSION_LESS oldest_nvcc)
      set(obstacle "since ${CMAKE_CUDA_COMPILER} is not nvcc ${oldest_nvcc} or newer (see 'CUDA' in README.md)")
    endif()
  endif()
endif()

if(obstacle AND ONNXFUSE_CUDA STREQUAL "ON")
  message(FATAL_ERROR "onnxfuse: ONNXFUSE_CUDA=ON cannot be met, ${obstacle}")
elseif(obstacle)
  message(STATUS "onnxfuse: CPU kernels only, ${obstacle}")
else()
  enable_language(CUDA)
  file(GLOB cuda_sources CONFIGURE_DEPENDS */*.cu)
  list(FILTER cuda_sources EXCLUDE REGEX "triton\\.cu$")
  target_sources(onnxfuse_ops PRIVATE ${cuda_sources})
  # What is for 8.6 and 8.9 is assembled from the PTX for 8.0, where that is made: half the time of compiling for them.
  set(architectures ${ONNXFUSE_CUDA_ARCHITECTURES})
  foreach(newer 86 89)
    if("${newer}-real" IN_LIST architectures AND architectures MATCHES "(^|;)80(-|;|$)")
      list(REMOVE_ITEM architectures "${newer}-real")
      target_compile_options(onnxfuse_ops PRIVATE
        "$<$<COMPILE_LANGUAGE:CUDA>:--generate-code=arch=compute_80,code=[sm_${newer}]>")
    endif()
  endforeach()
  set_target_properties(onnxfuse_ops PROPERTIES
    CUDA_ARCHITECTURES "${architectures}"
    CUDA_STANDARD 17
    CUDA_STANDARD_REQUIRED ON
    CUDA_EXTENSIONS OFF
    CUDA_RUNTIME_LIBRARY Static
    CUDA_VISIBILITY_PRESET hidden)
  message(STATUS "onnxfuse: CUDA kernels for ${ONNXFUSE_CUDA_ARCHITECTURES}, by ${CMAKE_CUDA_COMPILER}")
endif()
