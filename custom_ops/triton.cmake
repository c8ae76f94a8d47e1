# Kernels written in Triton, */*_triton.py with their adapters */*_triton.cu, compiled ahead of time into the library.
option(ONNXFUSE_TRITON "Take the kernels written in Triton, which compile_triton.py compiles; needs nvcc and triton" OFF)

if(ONNXFUSE_TRITON)
  if(obstacle)
    message(FATAL_ERROR "onnxfuse: ONNXFUSE_TRITON=ON needs CUDA kernels, but there are none, ${obstacle}")
  endif()
  find_package(Python COMPONENTS Interpreter REQUIRED)
  execute_process(COMMAND ${Python_EXECUTABLE} -P -c "import triton; print(triton.__version__)"
    RESULT_VARIABLE failed OUTPUT_VARIABLE triton_version ERROR_VARIABLE error OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    message(FATAL_ERROR "onnxfuse: ONNXFUSE_TRITON=ON cannot be met: ${Python_EXECUTABLE} has no working triton; "
      "ONNXFUSE_TRITON=1 in the environment of pip lets it bring one, or install triton and build with "
      "--no-build-isolation. It said: ${error}")
  endif()
  get_filename_component(cuda_programs ${CMAKE_CUDA_COMPILER} DIRECTORY)
  find_program(fatbinary fatbinary HINTS ${cuda_programs} REQUIRED)

  string(REPLACE ";" "," architectures "${ONNXFUSE_CUDA_ARCHITECTURES}")
  file(GLOB kernels RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS */*_triton.py)
  foreach(kernel ${kernels})
    string(REGEX REPLACE "\\.py$" "" name ${kernel})
    set(made ${CMAKE_CURRENT_BINARY_DIR}/triton/${name})
    add_custom_command(
      OUTPUT ${made}.h ${made}.cc
      COMMAND ${Python_EXECUTABLE} -P ${CMAKE_CURRENT_SOURCE_DIR}/compile_triton.py
        ${CMAKE_CURRENT_SOURCE_DIR}/${kernel} --header ${made}.h --architectures ${architectures}
        --fatbinary ${fatbinary}
      DEPENDS ${kernel} compile_triton.py
      COMMENT "Triton kernels of ${kernel}"
      VERBATIM)
    target_sources(onnxfuse_ops PRIVATE ${made}.h ${made}.cc ${name}.cu)
  endforeach()
  target_sources(onnxfuse_ops PRIVATE common/triton.cu)
  target_include_directories(onnxfuse_ops PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/triton)
  message(STATUS "onnxfuse: kernels written in Triton: ${kernels}, by triton ${triton_version}")
endif()
