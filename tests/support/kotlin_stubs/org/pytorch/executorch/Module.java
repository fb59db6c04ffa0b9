package org.pytorch.executorch;

public class Module {
    public static Module load(String modelPath) { throw new UnsupportedOperationException(); }
    public EValue[] forward(EValue... inputs) { throw new UnsupportedOperationException(); }
}
