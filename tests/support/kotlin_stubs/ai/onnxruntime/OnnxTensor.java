package ai.onnxruntime;

import java.nio.FloatBuffer;

public class OnnxTensor extends OnnxTensorLike {
    public static OnnxTensor createTensor(OrtEnvironment environment, FloatBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException();
    }
    public FloatBuffer getFloatBuffer() { throw new UnsupportedOperationException(); }
    @Override public void close() {}
}
