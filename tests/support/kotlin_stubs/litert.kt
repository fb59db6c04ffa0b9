package com.google.ai.edge.litert

enum class Accelerator { NONE, CPU, GPU, NPU }

class Environment

class TensorBuffer {
    fun writeFloat(data: FloatArray): Unit = TODO()

    fun readFloat(): FloatArray = TODO()
}

class CompiledModel private constructor() {
    class Options(vararg val accelerators: Accelerator)

    fun createInputBuffers(): List<TensorBuffer> = TODO()

    fun createOutputBuffers(): List<TensorBuffer> = TODO()

    fun run(inputs: List<TensorBuffer>, outputs: List<TensorBuffer>): Unit = TODO()

    companion object {
        @JvmOverloads
        @JvmStatic
        fun create(filePath: String, options: Options = Options(Accelerator.CPU), optionalEnv: Environment? = null): CompiledModel = TODO()
    }
}
